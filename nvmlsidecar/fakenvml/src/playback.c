/* Turns time into readings: the clock, and the endless loop over a fixture. */
#include "fake.h"

#include <time.h>

static long long started_ns;
static double speed = 1;

long long monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void clock_start(double multiplier)
{
    started_ns = monotonic_ns();
    speed = multiplier;
}

struct moment moment_now(void)
{
    double frozen;
    struct moment m = {0};
    if (control_time(&frozen))
        m.us = (long long)(frozen * 1e6 + 0.5);
    else
        m.us = (long long)((double)(monotonic_ns() - started_ns) / 1000 * speed);
    m.pass = m.us / fixture.period_us;
    m.into = m.us % fixture.period_us;
    while (m.sample + 1 < fixture.samples && fixture.sample[m.sample + 1].us <= m.into)
        m.sample++;
    return m;
}

const struct row *row_in(size_t sample, const struct nvmlDevice_st *device)
{
    const struct sample *s = &fixture.sample[sample];
    for (size_t i = s->row; i < s->row + s->rows; i++)
        if (fixture.row[i].device == device)
            return &fixture.row[i];
    return NULL;
}

/* A counter runs on between two samples, as a real one does: a client that
 * polls faster than the recording must not see it stand still and then jump. */
static double counter(const struct moment *at, const struct row *row, enum column column)
{
    double growth = row->device->growth[column - FIRST_COUNTER];
    double value = row->value[column] + (double)at->pass * growth;
    bool last = at->sample + 1 == fixture.samples;
    size_t next = last ? 0 : at->sample + 1;
    long long from = fixture.sample[at->sample].us;
    long long to = last ? fixture.period_us : fixture.sample[next].us;
    const struct row *then = row_in(next, row->device);
    if (then == NULL || then->error != NVML_SUCCESS || then->status[column] != NVML_SUCCESS)
        return value;
    double target = then->value[column] + (double)(at->pass + last) * growth;
    if (target <= value) /* a reset in the recording is a step, not a slope downwards */
        return value;
    return value + (target - value) * (double)(at->into - from) / (double)(to - from);
}

nvmlReturn_t cell(const struct moment *at, const struct row *row, enum column column, double *value)
{
    nvmlReturn_t status;
    if (control_set(row->device, column, &status, value))
        return status;
    if (row->status[column] != NVML_SUCCESS)
        return (nvmlReturn_t)row->status[column];
    *value = column >= FIRST_COUNTER ? counter(at, row, column) : row->value[column];
    return NVML_SUCCESS;
}
