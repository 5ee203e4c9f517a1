/* GPM: figures that are the difference of two samples which the client takes. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>

/* What GPM can tell, and from which column. */
static const struct {
    unsigned int id;
    enum column column;
} metrics[] = {
    {NVML_GPM_METRIC_GRAPHICS_UTIL, GPU_UTILIZATION},
    {NVML_GPM_METRIC_SM_UTIL, SM_ACTIVITY},
    {NVML_GPM_METRIC_SM_OCCUPANCY, SM_OCCUPANCY},
    {NVML_GPM_METRIC_ANY_TENSOR_UTIL, TENSOR_ACTIVITY},
    {NVML_GPM_METRIC_DRAM_BW_UTIL, DRAM_ACTIVITY},
    {NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, NVLINK_RX},
    {NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, NVLINK_TX},
};

#define METRICS (sizeof metrics / sizeof *metrics)

struct nvmlGpmSample_st {
    struct nvmlDevice_st *device; /* NULL: nothing taken yet */
    long long taken_ns;           /* real time: a frozen fixture must not make all samples one */
    long long us;                 /* fixture time, in which the counters grow */
    nvmlReturn_t status[METRICS];
    double value[METRICS];
};

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && support == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && support->version != NVML_GPM_SUPPORT_VERSION)
        rc = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (rc == NVML_SUCCESS)
        support->isSupportedDevice = device.handle->has_gpm;
    return done(rc);
}

static bool streaming(const struct nvmlDevice_st *device)
{
    return !control_gpmoff(device->parent != NULL ? device->parent : device);
}

nvmlReturn_t nvmlGpmQueryIfStreamingEnabled(nvmlDevice_t device, unsigned int *state)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && state == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && !device.handle->has_gpm)
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc == NVML_SUCCESS)
        *state = streaming(device.handle) ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return done(rc);
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample)
{
    nvmlReturn_t rc = begin(__func__);
    if (rc == NVML_SUCCESS && sample == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS) {
        sample->handle = calloc(1, sizeof *sample->handle);
        if (sample->handle == NULL)
            rc = NVML_ERROR_MEMORY;
    }
    return done(rc);
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample)
{
    /* Also after Shutdown: a client that tidies up late must not leak. */
    if (sample.handle == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = begin(__func__);
    free(sample.handle);
    return done(rc);
}

static nvmlReturn_t take(const struct row *row, nvmlGpmSample_t sample)
{
    if (sample.handle == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!row->device->has_gpm && (row->device->parent == NULL || !row->device->parent->has_gpm))
        return NVML_ERROR_NOT_SUPPORTED;
    sample.handle->device = row->device;
    sample.handle->taken_ns = monotonic_ns();
    sample.handle->us = now.us;
    for (size_t i = 0; i < METRICS; i++) {
        sample.handle->status[i] = cell(&now, row, metrics[i].column, &sample.handle->value[i]);
        if (!streaming(row->device)) /* the buffers are not filled */
            sample.handle->value[i] = 0;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS)
        rc = take(row, sample);
    return done(rc);
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int instance, nvmlGpmSample_t sample)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && device.handle->parent != NULL) /* wants the GPU, not the instance */
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc != NVML_SUCCESS)
        return done(rc);
    struct nvmlDevice_st *mig = mig_with(device.handle, instance);
    if (mig == NULL)
        return done(NVML_ERROR_NOT_FOUND);
    rc = look_up(__func__, mig, &row);
    if (rc == NVML_SUCCESS)
        rc = take(row, sample);
    return done(rc);
}

/* between works out one metric from two samples. */
static nvmlReturn_t between(const struct nvmlGpmSample_st *from, const struct nvmlGpmSample_st *to, unsigned int id,
                            double *value)
{
    size_t i = 0;
    while (i < METRICS && metrics[i].id != id)
        i++;
    if (i == METRICS)
        return NVML_ERROR_NOT_SUPPORTED;
    if (to->status[i] != NVML_SUCCESS)
        return to->status[i];
    *value = to->value[i];
    if (metrics[i].column < FIRST_COUNTER)
        return NVML_SUCCESS;
    if (from->status[i] != NVML_SUCCESS)
        return from->status[i];
    double seconds = (double)(to->us - from->us) / 1e6;
    *value = seconds != 0 ? (to->value[i] - from->value[i]) / 1048576 / seconds : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get)
{
    nvmlReturn_t rc = begin(__func__);
    if (rc == NVML_SUCCESS && get == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && get->version != NVML_GPM_METRICS_GET_VERSION)
        rc = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (rc != NVML_SUCCESS)
        return done(rc);
    const struct nvmlGpmSample_st *from = get->sample1.handle, *to = get->sample2.handle;
    if (get->numMetrics == 0 || get->numMetrics > NVML_GPM_METRIC_MAX || from == NULL || to == NULL ||
        to->device == NULL || from->device != to->device || from->taken_ns == to->taken_ns)
        return done(NVML_ERROR_INVALID_ARGUMENT);
    rc = fault_of(__func__, to->device);
    if (rc != NVML_SUCCESS)
        return done(rc);
    /* No further than the caller says: its struct may be an older, shorter one. */
    for (unsigned int i = 0; i < get->numMetrics; i++) {
        nvmlGpmMetric_t *m = &get->metrics[i];
        memset(&m->metricInfo, 0, sizeof m->metricInfo);
        m->nvmlReturn = between(from, to, m->metricId, &m->value);
    }
    return done(rc);
}
