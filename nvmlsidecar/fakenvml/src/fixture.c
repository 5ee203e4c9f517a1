/* Reads a fixture, format version 1, into memory. */
#include "fake.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fixture fixture;

static const char *const column_names[COLUMNS] = {
    "memory_total_mib", "memory_reserved_mib",
    "gpu_utilization", "memory_utilization", "memory_used_mib", "temperature", "power_draw",
    "pcie_tx_kbps", "pcie_rx_kbps", "sm_activity", "sm_occupancy", "tensor_activity", "dram_activity",
    "encoder_utilization", "decoder_utilization", "clock_events", "rows_pending", "rows_failed",
    "energy_joules", "nvlink_tx_bytes", "nvlink_rx_bytes", "ecc_corrected_errors", "ecc_uncorrected_errors",
};

enum text { T, INDEX, ID, PARENT, INSTANCE, PROFILE, MODEL, XID, ERROR, PROCESSES, TEXTS };

static const char *const text_names[TEXTS] = {
    "t", "index", "id", "parent", "instance", "profile", "model", "xid", "error", "processes",
};

static const char magic[] = "# gpuscaler fixture v1";

#define MAX_CELLS 256

/* Where each column is in the lines of this file, -1 if nowhere. */
static int text_at[TEXTS], column_at[COLUMNS];
static int width;

/* What is being read, for messages. */
static struct {
    const char *path;
    int line;
    char *text;
    size_t size;
} at;

static bool fail(const char *what, const char *detail)
{
    snprintf(at.text, at.size, "%s: line %d: %s%s%s", at.path, at.line, what, *detail ? ": " : "", detail);
    return false;
}

int column_named(const char *name)
{
    for (int i = 0; i < COLUMNS; i++)
        if (strcmp(name, column_names[i]) == 0)
            return i;
    return -1;
}

/* grow makes room for one more element. Nothing here can go on without
 * memory, so there is no error to return. */
void *grow(void *array, size_t used, size_t size)
{
    if (used & (used - 1)) /* the room doubles at powers of two */
        return array;
    array = realloc(array, (used ? 2 * used : 1) * size);
    if (array == NULL) {
        fprintf(stderr, "fakenvml: out of memory\n");
        abort();
    }
    return array;
}

/* number is 0 for an empty cell. */
static bool number(const char *text, double *v)
{
    char *end;
    *v = strtod(text, &end);
    return *end == '\0' && isfinite(*v);
}

/* split cuts a line at its commas, in place. */
static int split(char *line, char **cells)
{
    int n = 0;
    for (char *cell = line; cell != NULL && n < MAX_CELLS; n++) {
        char *comma = strchr(cell, ',');
        if (comma != NULL)
            *comma++ = '\0';
        cells[n] = cell;
        cell = comma;
    }
    return n;
}

static bool read_names(char *line)
{
    char *cells[MAX_CELLS];
    memset(text_at, -1, sizeof text_at);
    memset(column_at, -1, sizeof column_at);
    width = split(line, cells);
    for (int i = 0; i < width; i++) {
        int *slot = NULL;
        int column = column_named(cells[i]);
        if (column >= 0)
            slot = &column_at[column];
        for (int t = 0; t < TEXTS; t++)
            if (strcmp(cells[i], text_names[t]) == 0)
                slot = &text_at[t];
        if (slot != NULL && *slot >= 0)
            return fail("a column appears twice", cells[i]);
        if (slot != NULL)
            *slot = i;
    }
    for (int t = T; t <= ID; t++)
        if (text_at[t] < 0)
            return fail("a column is missing", text_names[t]);
    return true;
}

static struct nvmlDevice_st *device_named(const char *uuid)
{
    for (size_t i = 0; i < fixture.devices; i++)
        if (strcmp(fixture.device[i]->uuid, uuid) == 0)
            return fixture.device[i];
    return NULL;
}

static const char *text_of(char **cells, enum text t)
{
    return text_at[t] < 0 ? "" : cells[text_at[t]];
}

/* device_of finds or makes the device that a line is about. */
static struct nvmlDevice_st *device_of(char **cells)
{
    const char *uuid = text_of(cells, ID), *parent_uuid = text_of(cells, PARENT);
    double index, instance;
    struct nvmlDevice_st *parent = *parent_uuid ? device_named(parent_uuid) : NULL;
    struct nvmlDevice_st *device = device_named(uuid);
    if (*uuid == '\0') {
        fail("id is empty", "");
        return NULL;
    }
    if (*parent_uuid && (parent == NULL || parent->parent != NULL)) {
        fail("parent is no GPU of the lines above", parent_uuid);
        return NULL;
    }
    if (device != NULL && device->parent != parent) {
        fail("a device changes its parent", uuid);
        return NULL;
    }
    if (device != NULL)
        return device;
    if (!number(text_of(cells, INDEX), &index) || index < 0 || index > USHRT_MAX) {
        fail("index is not a number from 0 to 65535", text_of(cells, INDEX));
        return NULL;
    }
    if (!number(text_of(cells, INSTANCE), &instance) || instance < 0 || instance > USHRT_MAX) {
        fail("instance is not a number from 0 to 65535", text_of(cells, INSTANCE));
        return NULL;
    }
    device = grow(NULL, 0, sizeof *device);
    memset(device, 0, sizeof *device);
    device->uuid = uuid;
    device->parent = parent;
    device->index = parent ? parent->index : (unsigned int)index;
    device->instance = (unsigned int)instance;
    if (parent != NULL)
        parent->has_mig = true;
    fixture.device = grow(fixture.device, fixture.devices, sizeof(void *));
    fixture.device[fixture.devices++] = device;
    return device;
}

static bool read_processes(struct row *row, const char *text)
{
    row->process = fixture.processes;
    while (*text != '\0') {
        char *end;
        struct process p = {.pid = (unsigned int)strtoul(text, &end, 10)};
        if (end == text || *end != ':')
            return fail("processes is not pid:MiB;pid:MiB", text);
        const char *used = end + 1;
        p.mib = strtod(used, &end);
        if (end == used || (*end != ';' && *end != '\0'))
            return fail("processes is not pid:MiB;pid:MiB", text);
        fixture.process = grow(fixture.process, fixture.processes, sizeof p);
        fixture.process[fixture.processes++] = p;
        row->processes++;
        text = *end == ';' ? end + 1 : end;
    }
    return true;
}

static bool read_cell(struct row *row, enum column c, const char *text)
{
    nvmlReturn_t error = NVML_ERROR_UNKNOWN;
    row->status[c] = NVML_SUCCESS;
    if (*text == '\0') {
        row->status[c] = NVML_ERROR_NOT_SUPPORTED;
    } else if (*text == '!') {
        error_named(text + 1, &error); /* a reason that NVML has no name for stays UNKNOWN */
        row->status[c] = (short)error;
    } else if (!number(text, &row->value[c])) {
        return fail("not a number, !REASON or empty", text);
    }
    return true;
}

static bool read_row(char *line)
{
    char *cells[MAX_CELLS];
    double t;
    struct row row = {0};
    if (split(line, cells) != width)
        return fail("the number of cells is not that of the column names", "");
    if (!number(text_of(cells, T), &t) || t < 0 || t > 1e9)
        return fail("t is not a number from 0 to 1e9", text_of(cells, T));
    row.device = device_of(cells);
    if (row.device == NULL)
        return false;
    row.model = text_of(cells, MODEL);
    row.profile = text_of(cells, PROFILE);
    row.xids = text_of(cells, XID);
    if (row.xids[strspn(row.xids, "0123456789;")] != '\0')
        return fail("xid is not numbers with ; between them", row.xids);
    if (*text_of(cells, ERROR) && !error_named(text_of(cells, ERROR), &row.error))
        row.error = NVML_ERROR_UNKNOWN;
    for (int c = 0; c < COLUMNS; c++)
        if (!read_cell(&row, c, column_at[c] < 0 ? "" : cells[column_at[c]]))
            return false;
    if (!read_processes(&row, text_of(cells, PROCESSES)))
        return false;

    /* Rows of the same millisecond are one sample, as they are for the Go reader. */
    long long us = (long long)(t * 1000 + 0.5) * 1000;
    if (fixture.samples > 0 && us < fixture.sample[fixture.samples - 1].us)
        return fail("t is before the line above", text_of(cells, T));
    if (fixture.samples == 0 || us > fixture.sample[fixture.samples - 1].us) {
        fixture.sample = grow(fixture.sample, fixture.samples, sizeof *fixture.sample);
        fixture.sample[fixture.samples++] = (struct sample){.us = us, .row = fixture.rows};
    }
    if (row_in(fixture.samples - 1, row.device) != NULL)
        return fail("a device appears twice in one sample", row.device->uuid);
    fixture.row = grow(fixture.row, fixture.rows, sizeof row);
    fixture.row[fixture.rows++] = row;
    fixture.sample[fixture.samples - 1].rows++;
    for (int c = SM_ACTIVITY; c <= DRAM_ACTIVITY; c++)
        if (row.status[c] != NVML_ERROR_NOT_SUPPORTED && row.error == NVML_SUCCESS) {
            row.device->has_gpm = true;
            if (row.device->parent != NULL)
                row.device->parent->has_gpm = true;
        }
    return true;
}

/* growth is what one pass adds: the slope from a counter's first reading to
 * its last, over the whole period. What the counter lost when it started anew
 * is no growth. */
static double growth(const struct nvmlDevice_st *device, enum column counter)
{
    double first = 0, last = 0;
    long long from = 0, to = 0;
    bool seen = false;
    for (size_t s = 0; s < fixture.samples; s++) {
        const struct row *row = row_in(s, device);
        if (row == NULL || row->error != NVML_SUCCESS || row->status[counter] != NVML_SUCCESS)
            continue;
        to = fixture.sample[s].us;
        if (!seen) {
            first = last = row->value[counter];
            from = to;
            seen = true;
        }
        if (row->value[counter] < last)
            first -= last - row->value[counter];
        last = row->value[counter];
    }
    return to <= from ? 0 : (last - first) * (double)fixture.period_us / (double)(to - from);
}

static void finish(void)
{
    long long start = fixture.sample[0].us;
    size_t last = fixture.samples - 1;
    for (size_t s = 0; s <= last; s++)
        fixture.sample[s].us -= start;
    long long step = last > 0 ? fixture.sample[1].us : 1000000;
    fixture.period_us = fixture.sample[last].us + step;
    for (size_t d = 0; d < fixture.devices; d++)
        for (int c = 0; c < COUNTERS; c++)
            fixture.device[d]->growth[c] = growth(fixture.device[d], FIRST_COUNTER + c);
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return NULL;
    char *text = NULL;
    size_t size = 0;
    /* A delimiter that no text has makes getdelim read to the end. */
    if (getdelim(&text, &size, '\0', file) < 0) {
        free(text);
        text = NULL;
        errno = EINVAL; /* an empty file */
    }
    fclose(file);
    return text;
}

bool fixture_load(const char *path, char *text, size_t size)
{
    at.path = path;
    at.line = 0;
    at.text = text;
    at.size = size;
    char *rest = read_file(path); /* kept: rows and devices point into it */
    if (rest == NULL) {
        snprintf(text, size, "%s: %s", path, strerror(errno));
        return false;
    }
    if (strchr(rest, '"') != NULL) {
        snprintf(text, size, "%s: quoted cells are not supported", path);
        return false;
    }
    bool named = false;
    while (rest != NULL && *rest != '\0') {
        char *line = rest;
        at.line++;
        rest = strchr(line, '\n');
        if (rest != NULL)
            *rest++ = '\0';
        line[strcspn(line, "\r")] = '\0';
        if (at.line == 1 && strcmp(line, magic) != 0)
            return fail("the first line is not", magic);
        if (*line == '\0' || (*line == '#' && !named))
            continue;
        if (!(named ? read_row(line) : read_names(line)))
            return false;
        named = true;
    }
    if (fixture.samples == 0)
        return fail("there are no samples", "");
    finish();
    return true;
}
