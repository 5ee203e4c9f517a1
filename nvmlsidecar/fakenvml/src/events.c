/* Events: XIDs, from the fixture's rows and from the control file, and changes of the MIG layout. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>

/* What a set has seen of one GPU. */
struct watch {
    struct nvmlDevice_st *device;
    unsigned long long types;
    long long sample;    /* the first one, over all passes, of which something may be left */
    unsigned int within; /* how many of its XIDs have been told */
    unsigned int control;
};

struct nvmlEventSet_st {
    struct watch *watch;
    size_t watches;
};

static long long sample_now(void)
{
    return now.pass * (long long)fixture.samples + (long long)now.sample;
}

/* nth is the number at a position of "79;13"; 0 stands for none. */
static bool nth(const char *xids, unsigned int n, unsigned long long *xid)
{
    for (; n > 0 && xids != NULL; n--) {
        xids = strchr(xids, ';');
        if (xids != NULL)
            xids++;
    }
    if (xids == NULL || *xids == '\0')
        return false;
    *xid = strtoull(xids, NULL, 10);
    return true;
}

/* next takes the oldest event of the types asked for that has not been told. */
static bool next(struct watch *w, struct event *event)
{
    for (long long last = sample_now(); w->sample <= last; w->sample++, w->within = 0) {
        const struct row *row = row_in((size_t)(w->sample % (long long)fixture.samples), w->device);
        event->type = nvmlEventTypeXidCriticalError;
        while (row != NULL && (w->types & event->type) && nth(row->xids, w->within, &event->data)) {
            w->within++;
            if (event->data != 0)
                return true;
        }
    }
    unsigned int there;
    while ((there = control_events(w->device, w->control, event)) > w->control) {
        w->control++;
        if (w->types & event->type)
            return true;
    }
    w->control = there; /* the file may have been emptied */
    return false;
}

/* types are the events that a GPU has: those of MIG since driver 450. */
static unsigned long long types_of(const struct row *row)
{
    return (*row->xids != '\0' ? nvmlEventTypeXidCriticalError : 0) | (row->device->has_mig ? nvmlEventMigConfigChange : 0);
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    nvmlReturn_t rc = begin(__func__);
    if (rc == NVML_SUCCESS && set == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS) {
        set->handle = grow(NULL, 0, sizeof *set->handle);
        memset(set->handle, 0, sizeof *set->handle);
    }
    return done(rc);
}

/* Also without a driver: the set is the client's memory. */
nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    nvmlReturn_t rc = begin(__func__);
    if (rc == NVML_SUCCESS && set.handle == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS) {
        free(set.handle->watch);
        free(set.handle);
    }
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && types == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        *types = types_of(row);
    return done(rc);
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && (set.handle == NULL || types == 0))
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && (types & ~types_of(row)))
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc == NVML_SUCCESS) {
        struct event unused;
        struct watch w = {.device = device.handle, .types = types, .sample = sample_now() + 1};
        w.control = control_events(w.device, 0, &unused); /* what has happened is not told */
        set.handle->watch = grow(set.handle->watch, set.handle->watches, sizeof w);
        set.handle->watch[set.handle->watches++] = w;
    }
    return done(rc);
}

/* look is one look at all GPUs of a set. */
static nvmlReturn_t look(const char *function, nvmlEventSet_t set, nvmlEventData_t *data)
{
    nvmlReturn_t rc = begin(function);
    if (rc != NVML_SUCCESS)
        return done(rc);
    if (set.handle == NULL || data == NULL)
        return done(NVML_ERROR_INVALID_ARGUMENT);
    for (size_t i = 0; i < set.handle->watches; i++) {
        struct event event;
        if (!next(&set.handle->watch[i], &event))
            continue;
        memset(data, 0, sizeof *data);
        data->device.handle = set.handle->watch[i].device;
        data->eventType = event.type;
        data->eventData = event.data;
        data->gpuInstanceId = data->computeInstanceId = 0xFFFFFFFFU;
        return done(NVML_SUCCESS);
    }
    for (size_t i = 0; i < set.handle->watches; i++)
        if (control_lost(set.handle->watch[i].device))
            return done(NVML_ERROR_GPU_IS_LOST);
    return done(NVML_ERROR_TIMEOUT);
}

static nvmlReturn_t wait_for(const char *function, nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    long long until = monotonic_ns() + timeout_ms * 1000000LL;
    nvmlReturn_t rc = look(function, set, data);
    while (rc == NVML_ERROR_TIMEOUT && monotonic_ns() < until) {
        sleep_seconds(0.001);
        rc = look(function, set, data);
    }
    return rc;
}

nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    return wait_for(__func__, set, data, timeout_ms);
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    return wait_for(__func__, set, data, timeout_ms);
}
