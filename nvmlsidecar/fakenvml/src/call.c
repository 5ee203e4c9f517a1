/* What all calls share: loading, initialisation, the mutex, who is there. */
#include "fake.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct moment now;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned int initialized; /* how many times */
static char loaded_as[64];       /* the reload token that initialisation saw */
static bool loaded_with_token;
static char trouble[512];        /* why there is no fixture; "" if there is one */
static const char *driver = "580.95.05-fake";

__attribute__((constructor)) static void load(void)
{
    const char *path = getenv("FAKENVML_FIXTURE"), *speed = getenv("FAKENVML_SPEED");
    const char *absent = getenv("FAKENVML_ABSENT"), *version = getenv("FAKENVML_DRIVER");
    double multiplier = speed != NULL && *speed ? strtod(speed, NULL) : 1;
    if (!isfinite(multiplier) || multiplier <= 0) {
        fprintf(stderr, "fakenvml: FAKENVML_SPEED=%s is not a number above 0, 1 is used\n", speed);
        multiplier = 1;
    }
    if (path == NULL || *path == '\0')
        snprintf(trouble, sizeof trouble, "FAKENVML_FIXTURE is not set");
    else
        fixture_load(path, trouble, sizeof trouble);
    if (version != NULL && *version) {
        driver = strdup(version);
        symbols_of(version);
    }
    const char *control = getenv("FAKENVML_CONTROL");
    if (control != NULL && *control)
        control_open(strdup(control));
    if (absent != NULL)
        symbols_hide(absent);
    clock_start(multiplier);
}

const char *driver_version(void)
{
    return driver;
}

void sleep_seconds(double seconds)
{
    /* Up to a moment, not for a duration: the Go runtime interrupts its
     * threads with signals all the time. */
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    long long ns = until.tv_nsec + (long long)(seconds * 1e9);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

static void enter(const char *function)
{
    pthread_mutex_lock(&mutex);
    control_refresh();
    double seconds = control_delay(function);
    if (seconds <= 0)
        return;
    /* One call that hangs must not stop the others. */
    pthread_mutex_unlock(&mutex);
    sleep_seconds(seconds);
    pthread_mutex_lock(&mutex);
    control_refresh();
}

nvmlReturn_t done(nvmlReturn_t result)
{
    pthread_mutex_unlock(&mutex);
    return result;
}

/* A driver that was reloaded under the process knows nothing of it any more. */
static bool reloaded(void)
{
    const char *token = control_reload();
    return token != NULL && (!loaded_with_token || strcmp(token, loaded_as) != 0);
}

static nvmlReturn_t init(const char *function)
{
    enter(function);
    nvmlReturn_t rc = control_init();
    if (rc == NVML_SUCCESS)
        rc = control_error(function, NULL);
    if (rc == NVML_SUCCESS && *trouble) {
        static bool said;
        if (!said)
            fprintf(stderr, "fakenvml: no driver: %s\n", trouble);
        said = true;
        rc = NVML_ERROR_DRIVER_NOT_LOADED;
    }
    if (rc == NVML_SUCCESS && initialized++ == 0) {
        const char *token = control_reload();
        loaded_with_token = token != NULL;
        snprintf(loaded_as, sizeof loaded_as, "%s", token != NULL ? token : "");
    }
    return done(rc);
}

nvmlReturn_t nvmlInit(void)
{
    return init(__func__);
}

nvmlReturn_t nvmlInit_v2(void)
{
    return init(__func__);
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    return init(__func__);
}

nvmlReturn_t nvmlShutdown(void)
{
    enter(__func__);
    if (initialized == 0)
        return done(NVML_ERROR_UNINITIALIZED);
    nvmlReturn_t rc = control_error(__func__, NULL);
    if (rc == NVML_SUCCESS)
        initialized--;
    return done(rc);
}

nvmlReturn_t begin(const char *function)
{
    enter(function);
    if (initialized == 0 || reloaded())
        return NVML_ERROR_UNINITIALIZED;
    now = moment_now();
    return control_error(function, NULL);
}

nvmlReturn_t begin_on(const char *function, nvmlDevice_t device, const struct row **row)
{
    nvmlReturn_t rc = begin(function);
    if (rc != NVML_SUCCESS)
        return rc;
    for (size_t i = 0; i < fixture.devices; i++)
        if (fixture.device[i] == device.handle)
            return look_up(function, device.handle, row);
    return NVML_ERROR_INVALID_ARGUMENT;
}

/* The devices of this moment: rows of the current sample, less those that the
 * control file has taken away. */

static struct nvmlDevice_st *nth(const struct nvmlDevice_st *parent, unsigned int n)
{
    const struct sample *s = &fixture.sample[now.sample];
    for (size_t i = s->row; i < s->row + s->rows; i++)
        if (fixture.row[i].device->parent == parent && n-- == 0)
            return fixture.row[i].device;
    return NULL;
}

unsigned int gpu_count(void)
{
    unsigned int n = 0;
    while (nth(NULL, n) != NULL)
        n++;
    return control_count(n);
}

struct nvmlDevice_st *gpu_at(unsigned int position)
{
    return position < gpu_count() ? nth(NULL, position) : NULL;
}

struct nvmlDevice_st *mig_at(const struct nvmlDevice_st *gpu, unsigned int position)
{
    return control_migoff(gpu) ? NULL : nth(gpu, position);
}

struct nvmlDevice_st *mig_with(const struct nvmlDevice_st *gpu, unsigned int instance)
{
    struct nvmlDevice_st *mig;
    for (unsigned int i = 0; (mig = mig_at(gpu, i)) != NULL; i++)
        if (mig->instance == instance)
            return mig;
    return NULL;
}

bool mig_on(const struct nvmlDevice_st *gpu)
{
    return mig_at(gpu, 0) != NULL;
}

static const struct row *present(const struct nvmlDevice_st *device)
{
    if (device->parent != NULL)
        return present(device->parent) != NULL && !control_migoff(device->parent) ? row_in(now.sample, device) : NULL;
    unsigned int n = gpu_count();
    for (unsigned int i = 0; i < n; i++)
        if (nth(NULL, i) == device)
            return row_in(now.sample, device);
    return NULL;
}

nvmlReturn_t fault_of(const char *function, const struct nvmlDevice_st *device)
{
    if (control_lost(device))
        return NVML_ERROR_GPU_IS_LOST;
    return control_error(function, device);
}

nvmlReturn_t look_up(const char *function, struct nvmlDevice_st *device, const struct row **row)
{
    nvmlReturn_t rc = fault_of(function, device);
    if (rc != NVML_SUCCESS)
        return rc;
    *row = present(device);
    if (*row == NULL)
        return device->parent != NULL ? NVML_ERROR_NOT_FOUND : NVML_ERROR_GPU_IS_LOST;
    /* With a GPU, all its instances are gone. */
    if (device->parent != NULL && present(device->parent)->error != NVML_SUCCESS)
        return present(device->parent)->error;
    return (*row)->error;
}

nvmlReturn_t copy_text(char *to, unsigned int size, const char *text)
{
    if (to == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= size)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, text);
    return NVML_SUCCESS;
}

unsigned int to_uint(double v)
{
    return v <= 0 ? 0 : v >= 4294967295.0 ? 4294967295U : (unsigned int)(v + 0.5);
}

unsigned long long to_ull(double v)
{
    return v <= 0 ? 0 : v >= 9e18 ? 9000000000000000000ULL : (unsigned long long)(v + 0.5);
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    nvmlReturn_t rc = begin(__func__);
    if (rc == NVML_SUCCESS)
        rc = copy_text(version, length, driver);
    return done(rc);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    char text[80];
    nvmlReturn_t rc = begin(__func__);
    snprintf(text, sizeof text, "%d.%.60s", NVML_API_VERSION, driver);
    if (rc == NVML_SUCCESS)
        rc = copy_text(version, length, text);
    return done(rc);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    nvmlReturn_t rc = begin(__func__);
    if (rc == NVML_SUCCESS && version == NULL)
        rc = NVML_ERROR_INVALID_ARGUMENT;
    if (rc == NVML_SUCCESS)
        *version = 13000;
    return done(rc);
}
