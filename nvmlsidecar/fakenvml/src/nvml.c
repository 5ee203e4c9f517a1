/* Devices, and the readings that are one cell of the fixture each. */
#include "fake.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MIB 1048576.0

static nvmlReturn_t get_count(const char *function, unsigned int *count)
{
    nvmlReturn_t rc = begin(function);
    if (rc == NVML_SUCCESS && count == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        *count = gpu_count();
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *count)
{
    return get_count(__func__, count);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    return get_count(__func__, count);
}

static nvmlReturn_t get_by_index(const char *function, unsigned int index, nvmlDevice_t *device)
{
    const struct row *row;
    nvmlReturn_t rc = begin(function);
    struct nvmlDevice_st *gpu = rc == NVML_SUCCESS ? gpu_at(index) : NULL;
    if (rc == NVML_SUCCESS && (device == NULL || gpu == NULL))
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        rc = look_up(function, gpu, &row);
    if (rc == NVML_SUCCESS)
        device->handle = gpu;
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    return get_by_index(__func__, index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    return get_by_index(__func__, index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    const struct row *row;
    nvmlReturn_t rc = begin(__func__);
    if (rc == NVML_SUCCESS && (uuid == NULL || device == NULL))
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc != NVML_SUCCESS)
        return done(rc);
    rc = NVML_ERROR_NOT_FOUND;
    for (size_t i = 0; i < fixture.devices; i++)
        if (strcmp(fixture.device[i]->uuid, uuid) == 0) {
            rc = look_up(__func__, fixture.device[i], &row);
            if (rc == NVML_SUCCESS)
                device->handle = fixture.device[i];
        }
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS)
        rc = copy_text(uuid, length, device.handle->uuid);
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    char text[512];
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc != NVML_SUCCESS)
        return done(rc);
    const struct nvmlDevice_st *parent = device.handle->parent;
    const char *model = row->model;
    if (*model == '\0' && parent != NULL)
        model = row_in(now.sample, parent)->model;
    /* A recording may hold the instance's full name already. */
    if (parent != NULL && strstr(model, " MIG ") == NULL)
        snprintf(text, sizeof text, "%s MIG %s", model, row->profile);
    else
        snprintf(text, sizeof text, "%s", model);
    return done(copy_text(name, length, text));
}

/* get_uint answers with one cell, in units of 1/scale, to the nearest. */
static nvmlReturn_t get_uint(const char *function, nvmlDevice_t device, enum column column, double scale,
                             unsigned int *to)
{
    const struct row *row;
    double v;
    nvmlReturn_t rc = begin_on(function, device, &row);
    if (rc == NVML_SUCCESS && to == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        rc = cell(&now, row, column, &v);
    if (rc == NVML_SUCCESS)
        *to = to_uint(v * scale);
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && index == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc != NVML_SUCCESS)
        return done(rc);
    *index = device.handle->index;
    if (device.handle->parent != NULL) /* an instance's is that within its GPU */
        for (*index = 0; mig_at(device.handle->parent, *index) != device.handle;)
            ++*index;
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && minor == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && device.handle->parent != NULL)
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc == NVML_SUCCESS)
        *minor = device.handle->index;
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    const struct row *row;
    double gpu = 0, memory = 0;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && utilization == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    /* The column has GPM's figure for an instance: NVML proper has none, nor
     * one for a GPU that is cut into instances. */
    if (rc == NVML_SUCCESS && (device.handle->parent != NULL || mig_on(device.handle)))
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc == NVML_SUCCESS)
        rc = cell(&now, row, GPU_UTILIZATION, &gpu);
    if (rc == NVML_SUCCESS) {
        rc = cell(&now, row, MEMORY_UTILIZATION, &memory);
        if (rc == NVML_ERROR_NOT_SUPPORTED) /* one struct for both: it cannot lack one of them */
            rc = NVML_SUCCESS;
    }
    if (rc == NVML_SUCCESS) {
        utilization->gpu = to_uint(gpu);
        utilization->memory = to_uint(memory);
    }
    return done(rc);
}

struct memory {
    double total, reserved, used; /* bytes */
};

static nvmlReturn_t get_memory(const struct row *row, struct memory *m)
{
    nvmlReturn_t rc = cell(&now, row, MEMORY_TOTAL, &m->total);
    if (rc == NVML_SUCCESS && m->total <= 0)
        rc = NVML_ERROR_NOT_SUPPORTED;
    if (rc == NVML_SUCCESS)
        rc = cell(&now, row, MEMORY_USED, &m->used);
    if (rc != NVML_SUCCESS)
        return rc;
    if (cell(&now, row, MEMORY_RESERVED, &m->reserved) != NVML_SUCCESS)
        m->reserved = 0;
    m->total *= MIB;
    m->reserved *= MIB;
    m->used *= MIB;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    const struct row *row;
    struct memory m;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && memory == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        rc = get_memory(row, &m);
    if (rc == NVML_SUCCESS) {
        memory->total = to_ull(m.total);
        memory->used = to_ull(m.used + m.reserved);
        memory->free = to_ull(m.total - m.used - m.reserved);
    }
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    const struct row *row;
    struct memory m;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && memory == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS && memory->version != nvmlMemory_v2)
        rc = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (rc == NVML_SUCCESS)
        rc = get_memory(row, &m);
    if (rc == NVML_SUCCESS) {
        memory->total = to_ull(m.total);
        memory->reserved = to_ull(m.reserved);
        memory->used = to_ull(m.used);
        memory->free = to_ull(m.total - m.used - m.reserved);
    }
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *temperature)
{
    const struct row *row;
    double v;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && (temperature == NULL || sensor != NVML_TEMPERATURE_GPU))
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        rc = cell(&now, row, TEMPERATURE, &v);
    if (rc == NVML_SUCCESS)
        *temperature = (unsigned int)lround(v); /* below zero it wraps, as NVML's type has it */
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature)
{
    unsigned int celsius = 0;
    if (temperature != NULL && temperature->version != nvmlTemperature_v1) {
        const struct row *row;
        nvmlReturn_t rc = begin_on(__func__, device, &row);
        return done(rc == NVML_SUCCESS ? NVML_ERROR_ARGUMENT_VERSION_MISMATCH : rc);
    }
    nvmlReturn_t rc = get_uint(__func__, device, TEMPERATURE, 1, temperature != NULL ? &celsius : NULL);
    if (rc == NVML_SUCCESS)
        temperature->temperature = (int)celsius;
    return rc;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power)
{
    return get_uint(__func__, device, POWER, 1000, power);
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *energy)
{
    const struct row *row;
    double joules;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && energy == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        rc = cell(&now, row, ENERGY, &joules);
    if (rc == NVML_SUCCESS)
        *energy = to_ull(joules * 1000);
    return done(rc);
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *value)
{
    if (counter != NVML_PCIE_UTIL_TX_BYTES && counter != NVML_PCIE_UTIL_RX_BYTES)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = get_uint(__func__, device, counter == NVML_PCIE_UTIL_TX_BYTES ? PCIE_TX : PCIE_RX, 1, value);
    /* The real one counts bytes for 20 ms, which clients have to plan for. */
    if (rc == NVML_SUCCESS)
        sleep_seconds(0.020);
    return rc;
}

/* get_engine is for the encoder and the decoder. */
static nvmlReturn_t get_engine(const char *function, nvmlDevice_t device, enum column column,
                               unsigned int *utilization, unsigned int *period_us)
{
    if (period_us == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = get_uint(function, device, column, 1, utilization);
    if (rc == NVML_SUCCESS)
        *period_us = 167000;
    return rc;
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *utilization, unsigned int *period_us)
{
    return get_engine(__func__, device, ENCODER, utilization, period_us);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *utilization, unsigned int *period_us)
{
    return get_engine(__func__, device, DECODER, utilization, period_us);
}

/* get_whole is a counter, or a state, that is one cell. */
static void get_whole(const struct row *row, enum column column, nvmlFieldValue_t *field)
{
    double v = 0;
    field->nvmlReturn = cell(&now, row, column, &v);
    if (field->nvmlReturn != NVML_SUCCESS)
        return;
    if (column < FIRST_COUNTER) { /* one of the union's four bytes: the others stay as they are */
        field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        field->value.uiVal = to_uint(v);
        return;
    }
    field->value.ullVal = to_ull(v);
}

/* get_field knows the NVLink data counters, ECC errors and remapped rows. The
 * fixture has only the sums over all links, so all traffic is on link 0. */
static void get_field(const struct row *row, nvmlFieldValue_t *field)
{
    struct timespec wall;
    double bytes = 0;
    clock_gettime(CLOCK_REALTIME, &wall);
    field->timestamp = wall.tv_sec * 1000000LL + wall.tv_nsec / 1000;
    field->latencyUsec = 0;
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    if (field->fieldId == NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX)
        field->nvmlReturn = cell(&now, row, NVLINK_TX, &bytes);
    else if (field->fieldId == NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)
        field->nvmlReturn = cell(&now, row, NVLINK_RX, &bytes);
    else if (field->fieldId == NVML_FI_DEV_ECC_SBE_AGG_TOTAL)
        return get_whole(row, ECC_CORRECTED, field);
    else if (field->fieldId == NVML_FI_DEV_ECC_DBE_AGG_TOTAL)
        return get_whole(row, ECC_UNCORRECTED, field);
    else if (field->fieldId == NVML_FI_DEV_REMAPPED_PENDING)
        return get_whole(row, ROWS_PENDING, field);
    else if (field->fieldId == NVML_FI_DEV_REMAPPED_FAILURE)
        return get_whole(row, ROWS_FAILED, field);
    else
        field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    if (field->nvmlReturn != NVML_SUCCESS)
        return;
    if (field->scopeId != 0 && field->scopeId != UINT_MAX)
        bytes = 0;
    field->value.ullVal = to_ull(floor(bytes / 1024));
}

static nvmlReturn_t get_clock_events(const char *function, nvmlDevice_t device, unsigned long long *reasons)
{
    unsigned int bits = 0;
    if (reasons == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t rc = get_uint(function, device, CLOCK_EVENTS, 1, &bits);
    if (rc == NVML_SUCCESS)
        *reasons = bits;
    return rc;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    return get_clock_events(__func__, device, reasons);
}

/* Its name before driver 535. */
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    return get_clock_events(__func__, device, reasons);
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    const struct row *row;
    nvmlReturn_t rc = begin_on(__func__, device, &row);
    if (rc == NVML_SUCCESS && (values == NULL || count <= 0))
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        for (int i = 0; i < count; i++)
            get_field(row, &values[i]);
    return done(rc);
}
