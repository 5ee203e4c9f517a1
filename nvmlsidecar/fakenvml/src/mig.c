/* MIG instances, and the processes on them and on whole GPUs. */
#include "fake.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_INSTANCES 7

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && (current == NULL || pending == NULL))
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && !device.handle->has_mig)
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc == NVML_SUCCESS)
        *current = *pending = mig_on(device.handle) ? NVML_DEVICE_MIG_ENABLE : NVML_DEVICE_MIG_DISABLE;
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && count == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        *count = mig_on(device.handle) ? MAX_INSTANCES : 0;
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && mig == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && !device.handle->has_mig)
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc != NVML_SUCCESS)
        return done(rc);
    struct nvmlDevice_st *instance = mig_at(device.handle, index);
    if (instance == NULL)
        return done(NVML_ERROR_NOT_FOUND);
    rc = look_up(__func__, instance, &row);
    if (rc == NVML_SUCCESS)
        mig->handle = instance;
    return done(rc);
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && is_mig == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        *is_mig = device.handle->parent != NULL;
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig, nvmlDevice_t *device)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, mig, &row);
    if (rc == NVML_SUCCESS && (device == NULL || mig.handle->parent == NULL))
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        device->handle = mig.handle->parent;
    return done(rc);
}

/* compute_instance is the number of an instance among those of its GPU instance. */
static unsigned int compute_instance(const struct nvmlDevice_st *device)
{
    const struct nvmlDevice_st *mig;
    unsigned int n = 0;
    for (unsigned int i = 0; (mig = mig_at(device->parent, i)) != NULL && mig != device; i++)
        n += mig->instance == device->instance;
    return n;
}

/* get_id is for the two ids that only an instance has. */
static nvmlReturn_t get_id(const char *function, nvmlDevice_t device, bool gpu_instance, unsigned int *id)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(function, device, &row);
    if (rc == NVML_SUCCESS && id == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && device.handle->parent == NULL)
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc == NVML_SUCCESS)
        *id = gpu_instance ? device.handle->instance : compute_instance(device.handle);
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
    return get_id(__func__, device, true, id);
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
    return get_id(__func__, device, false, id);
}

/* slices is the number before a letter of a profile: 2 for 'g' in "1c.2g.35gb". */
static unsigned int slices(const char *profile, char letter)
{
    while (*profile != '\0') {
        char *end;
        unsigned long n = strtoul(profile, &end, 10);
        if (end != profile && end[0] == letter && (end[1] == '.' || end[1] == '\0'))
            return (unsigned int)n;
        profile = strchr(profile, '.');
        if (profile++ == NULL)
            break;
    }
    return 0;
}

static nvmlReturn_t get_attributes(const char *function, nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    const struct row *row;
    double total;
    nvmlReturn_t rc = begin_on(function, device, &row);
    if (rc == NVML_SUCCESS && attributes == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && device.handle->parent == NULL)
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc == NVML_SUCCESS)
        rc = cell(&now, row, MEMORY_TOTAL, &total);
    if (rc != NVML_SUCCESS)
        return done(rc);
    memset(attributes, 0, sizeof *attributes); /* engines are not in a fixture */
    attributes->memorySizeMB = to_ull(total);
    attributes->gpuInstanceSliceCount = slices(row->profile, 'g');
    attributes->computeInstanceSliceCount = slices(row->profile, 'c');
    if (attributes->computeInstanceSliceCount == 0) /* the whole GPU instance's */
        attributes->computeInstanceSliceCount = attributes->gpuInstanceSliceCount;
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    return get_attributes(__func__, device, attributes);
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    return get_attributes(__func__, device, attributes);
}

/* What drivers 535.43 to 535.86 took for the records of _v3: longer by a member, so that they
 * write past the end of a caller's array. 535.98 went back. */
struct long_process {
    nvmlProcessInfo_v2_t info;
    unsigned long long protected_memory;
};

/* Collects processes: all are counted, those that there is room for are kept. */
struct list {
    nvmlProcessInfo_v1_t *v1; /* one of them, or none */
    nvmlProcessInfo_v2_t *v2;
    struct long_process *longer;
    unsigned int room, used;
};

static void add(struct list *list, const struct process *p, const struct nvmlDevice_st *device)
{
    unsigned int i = list->used++;
    if (i >= list->room)
        return;
    unsigned long long bytes = to_ull(p->mib * 1048576);
    if (list->v1 != NULL)
        list->v1[i] = (nvmlProcessInfo_v1_t){.pid = p->pid, .usedGpuMemory = bytes};
    nvmlProcessInfo_v2_t info = {
        .pid = p->pid,
        .usedGpuMemory = bytes,
        .gpuInstanceId = device->parent != NULL ? device->instance : UINT_MAX,
        .computeInstanceId = device->parent != NULL ? compute_instance(device) : UINT_MAX,
    };
    if (list->v2 != NULL)
        list->v2[i] = info;
    if (list->longer != NULL)
        list->longer[i] = (struct long_process){info, 0};
}

static bool has_process(const struct row *row, unsigned int pid)
{
    for (size_t i = row->process; i < row->process + row->processes; i++)
        if (fixture.process[i].pid == pid)
            return true;
    return false;
}

/* A recording may list the processes of the instances with the GPU as well. */
static bool on_instance(const struct nvmlDevice_st *gpu, unsigned int pid)
{
    struct nvmlDevice_st *mig;
    for (unsigned int i = 0; (mig = mig_at(gpu, i)) != NULL; i++)
        if (has_process(row_in(now.sample, mig), pid))
            return true;
    return false;
}

static void add_row(struct list *list, const struct row *row)
{
    for (size_t i = row->process; i < row->process + row->processes; i++)
        if (row->device->parent != NULL || !on_instance(row->device, fixture.process[i].pid))
            add(list, &fixture.process[i], row->device);
}

static nvmlReturn_t get_processes(const char *function, nvmlDevice_t device, unsigned int *count, struct list list)
{
    const struct row *row;
    struct nvmlDevice_st *mig;
    nvmlReturn_t rc = begin_on(function, device, &row);
    if (rc == NVML_SUCCESS && count == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc != NVML_SUCCESS)
        return done(rc);
    list.room = list.v1 != NULL || list.v2 != NULL || list.longer != NULL ? *count : 0;
    add_row(&list, row);
    if (device.handle->parent == NULL)
        for (unsigned int i = 0; (mig = mig_at(device.handle, i)) != NULL; i++)
            add_row(&list, row_in(now.sample, mig));
    *count = list.used;
    return done(list.used > list.room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v1_t *infos)
{
    return get_processes(__func__, device, count, (struct list){.v1 = infos});
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v2_t *infos)
{
    return get_processes(__func__, device, count, (struct list){.v2 = infos});
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
{
    unsigned int minor;
    if (sscanf(driver_version(), "535.%u", &minor) == 1 && minor >= 43 && minor <= 86)
        return get_processes(__func__, device, count, (struct list){.longer = (struct long_process *)infos});
    return get_processes(__func__, device, count, (struct list){.v2 = infos});
}

/* A fixture does not tell graphics from compute: all are compute. */
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
{
    const struct row *row;
    (void)infos;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && count == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        *count = 0;
    return done(rc);
}
