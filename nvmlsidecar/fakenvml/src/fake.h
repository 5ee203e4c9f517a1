/*
 * A stand-in for libnvidia-ml.so.1 that answers from a recorded fixture, so
 * that a real NVML client can be run, and made to suffer, without a GPU.
 *
 * fixture.c reads the CSV, playback.c loops over it, control.c holds the faults
 * asked for, absent.c hides symbols, call.c is what every entry point shares;
 * nvml.c, mig.c, gpm.c and events.c are the entry points themselves.
 *
 * One mutex guards everything: begin() takes it, done() gives it back.
 */
#ifndef FAKE_H
#define FAKE_H

/* Only NVML's own functions may be visible: anything else could collide with
 * the symbols of the program that loads us. */
#pragma GCC visibility push(default)
#include <nvml.h>
#pragma GCC visibility pop

#include <stdbool.h>
#include <stddef.h>

/* The numeric columns; names in fixture.c, in this order. */
enum column {
    MEMORY_TOTAL, MEMORY_RESERVED,
    GPU_UTILIZATION, MEMORY_UTILIZATION, MEMORY_USED, TEMPERATURE, POWER,
    PCIE_TX, PCIE_RX, SM_ACTIVITY, SM_OCCUPANCY, TENSOR_ACTIVITY, DRAM_ACTIVITY,
    ENCODER, DECODER, CLOCK_EVENTS, ROWS_PENDING, ROWS_FAILED,
    ENERGY, NVLINK_TX, NVLINK_RX, ECC_CORRECTED, ECC_UNCORRECTED,
    COLUMNS,
    FIRST_COUNTER = ENERGY, /* the rest are cumulative */
    COUNTERS = COLUMNS - FIRST_COUNTER
};

/* A GPU or a MIG instance: what an nvmlDevice_t points to. One for each uuid,
 * never freed, so that a handle outlives whatever happens to its device. */
struct nvmlDevice_st {
    const char *uuid;
    struct nvmlDevice_st *parent; /* NULL for a GPU */
    unsigned int index;           /* of the GPU */
    unsigned int instance;        /* GPU instance id */
    bool has_mig, has_gpm;        /* in any sample, its instances' included */
    double growth[COUNTERS];      /* what one pass adds to each counter */
};

struct process {
    unsigned int pid;
    double mib;
};

struct row {
    struct nvmlDevice_st *device;
    const char *model, *profile, *xids;
    nvmlReturn_t error;           /* of the whole device */
    size_t process, processes;    /* first and number in fixture.processes */
    double value[COLUMNS];
    short status[COLUMNS];        /* nvmlReturn_t of each cell */
};

struct sample {
    long long us; /* since the first sample */
    size_t row, rows;
};

struct fixture {
    struct row *row;
    size_t rows;
    struct sample *sample;
    size_t samples;
    struct nvmlDevice_st **device;
    size_t devices;
    struct process *process;
    size_t processes;
    long long period_us;
};

/* Empty until fixture_load succeeded, read-only from then on. */
extern struct fixture fixture;

/* Says why on failure, in text. */
bool fixture_load(const char *path, char *text, size_t size);
int column_named(const char *name); /* -1: no such column */
void *grow(void *array, size_t used, size_t size);

const char *driver_version(void); /* "580.95.05-fake", or FAKENVML_DRIVER */

/* What an event set reports: the type and the number of an XID. */
struct event {
    unsigned long long type, data;
};

/* Where playback stands. */
struct moment {
    long long us;    /* fixture time since the start, over all passes */
    long long pass;  /* complete passes before this one */
    long long into;  /* of this pass, in us */
    size_t sample;   /* the current one */
};

long long monotonic_ns(void);
void clock_start(double speed);
struct moment moment_now(void);
const struct row *row_in(size_t sample, const struct nvmlDevice_st *device);
/* A cell's value at a moment: the row's, a counter's interpolated one, or
 * what the control file puts in its place. */
nvmlReturn_t cell(const struct moment *at, const struct row *row, enum column column, double *value);

/* Names are without NVML_ERROR_, with it, or numbers. */
bool error_named(const char *name, nvmlReturn_t *code);

/* Faults. All of these need the mutex. */
void control_open(const char *path);
void control_refresh(void);
double control_delay(const char *function); /* seconds to sleep first */
unsigned int control_events(const struct nvmlDevice_st *device, unsigned int after, struct event *event);
nvmlReturn_t control_init(void);
nvmlReturn_t control_error(const char *function, const struct nvmlDevice_st *device);
bool control_lost(const struct nvmlDevice_st *device);
bool control_migoff(const struct nvmlDevice_st *gpu);
bool control_gpmoff(const struct nvmlDevice_st *gpu); /* its GPM streaming is off */
unsigned int control_count(unsigned int have);
const char *control_reload(void); /* the token, "" without one; NULL: no such line */
bool control_time(double *seconds);
bool control_set(const struct nvmlDevice_st *device, enum column column, nvmlReturn_t *status, double *value);

void symbols_of(const char *version); /* hides what that driver does not have yet */
void symbols_hide(const char *names); /* comma-separated */
bool symbol_exists(const char *name); /* hidden ones do */

/*
 * begin and begin_on take the mutex, also when they fail: every path through
 * an entry point ends in done(). They return what the call is to return
 * already, because of a fault or of the device's state.
 */
nvmlReturn_t begin(const char *function);
nvmlReturn_t begin_on(const char *function, nvmlDevice_t device, const struct row **row);
nvmlReturn_t done(nvmlReturn_t result);
void sleep_seconds(double seconds);

/* For use between begin and done. */
extern struct moment now;
/* What a call on a device fails with, or its row; function for its faults. */
nvmlReturn_t look_up(const char *function, struct nvmlDevice_st *device, const struct row **row);
/* Only what the control file asks for. */
nvmlReturn_t fault_of(const char *function, const struct nvmlDevice_st *device);
unsigned int gpu_count(void);
struct nvmlDevice_st *gpu_at(unsigned int position);
struct nvmlDevice_st *mig_at(const struct nvmlDevice_st *gpu, unsigned int position);
struct nvmlDevice_st *mig_with(const struct nvmlDevice_st *gpu, unsigned int instance);
bool mig_on(const struct nvmlDevice_st *gpu);

nvmlReturn_t copy_text(char *to, unsigned int size, const char *text);
unsigned int to_uint(double v);
unsigned long long to_ull(double v);

#endif
