/* The control file: faults that a test switches on and off as it goes. */
#include "fake.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum kind { INIT, ERROR, LOST, SLEEP, COUNT, RELOAD, SET, TIME, MIGOFF, GPMOFF, XID_EVENT, MIG_EVENT };

struct fault {
    enum kind kind;
    char function[64];
    char device[96]; /* as written: *, 0, 0/1 or a uuid */
    char token[64];
    int column;
    nvmlReturn_t error;
    double value;
};

static const char *path;
static struct stat seen; /* all zeros: there was no file */
static struct fault *faults;
static size_t count;

void control_open(const char *file)
{
    path = file;
}

/* A GPU's number means the GPU alone, not its instances: they have readings of
 * their own. */
static bool selects(const char *selector, const struct nvmlDevice_st *device)
{
    char name[32];
    if (strcmp(selector, "*") == 0)
        return true;
    if (device == NULL)
        return false;
    snprintf(name, sizeof name, "%u", device->index);
    if (device->parent != NULL)
        snprintf(name, sizeof name, "%u/%u", device->index, device->instance);
    return strcmp(selector, name) == 0 || strcmp(selector, device->uuid) == 0;
}

/* Each of these takes one word of a line and says whether it makes sense. A
 * mistyped name would otherwise be a fault that silently never strikes. */
static bool is_function(struct fault *f, const char *word)
{
    snprintf(f->function, sizeof f->function, "%s", word);
    return symbol_exists(word);
}

static bool is_device(struct fault *f, const char *word)
{
    snprintf(f->device, sizeof f->device, "%s", word);
    for (size_t i = 0; i < fixture.devices; i++)
        if (selects(f->device, fixture.device[i]))
            return true;
    return false;
}

static bool is_number(struct fault *f, const char *word)
{
    char *end;
    f->value = strtod(word, &end);
    return end != word && *end == '\0' && f->value >= 0 && f->value < 1e9;
}

static bool is_count(struct fault *f, const char *word)
{
    unsigned int gpus = 0;
    for (size_t i = 0; i < fixture.devices; i++)
        gpus += fixture.device[i]->parent == NULL;
    return is_number(f, word) && f->value == floor(f->value) && f->value <= gpus;
}

static bool is_setting(struct fault *f, const char *word)
{
    char *end;
    f->error = NVML_SUCCESS;
    if (strcmp(word, "-") == 0) {
        f->error = NVML_ERROR_NOT_SUPPORTED;
        return true;
    }
    if (*word == '!')
        return error_named(word + 1, &f->error);
    f->value = strtod(word, &end);
    return end != word && *end == '\0' && isfinite(f->value);
}

/* parse understands one line, cut into words. */
static bool parse(struct fault *f, char **word, int words)
{
    const char *verb = word[0];
    if (words == 2 && strcmp(verb, "init") == 0) {
        f->kind = INIT;
        return error_named(word[1], &f->error);
    }
    if (words == 4 && strcmp(verb, "error") == 0) {
        f->kind = ERROR;
        return is_function(f, word[1]) && is_device(f, word[2]) && error_named(word[3], &f->error);
    }
    if (words == 2 && strcmp(verb, "lost") == 0) {
        f->kind = LOST;
        return is_device(f, word[1]);
    }
    if (words == 3 && strcmp(verb, "hang") == 0) {
        f->kind = SLEEP;
        return is_function(f, word[1]) && is_number(f, word[2]);
    }
    if (words == 3 && strcmp(verb, "delay") == 0) {
        f->kind = SLEEP;
        bool ok = is_function(f, word[1]) && is_number(f, word[2]);
        f->value /= 1000;
        return ok;
    }
    if (words == 2 && strcmp(verb, "count") == 0) {
        f->kind = COUNT;
        return is_count(f, word[1]);
    }
    if (words <= 2 && strcmp(verb, "reload") == 0) {
        f->kind = RELOAD;
        snprintf(f->token, sizeof f->token, "%s", words == 2 ? word[1] : "");
        return true;
    }
    if (words == 4 && strcmp(verb, "set") == 0) {
        f->kind = SET;
        f->column = column_named(word[2]);
        return is_device(f, word[1]) && f->column >= 0 && is_setting(f, word[3]);
    }
    if (words == 2 && strcmp(verb, "time") == 0) {
        f->kind = TIME;
        return is_number(f, word[1]);
    }
    if (words == 3 && strcmp(verb, "xid") == 0) {
        f->kind = XID_EVENT;
        return is_device(f, word[1]) && is_number(f, word[2]);
    }
    if (words == 2 && strcmp(verb, "migchange") == 0) {
        f->kind = MIG_EVENT;
        return is_device(f, word[1]);
    }
    if (words == 2 && strcmp(verb, "gpmoff") == 0) {
        f->kind = GPMOFF;
        return is_device(f, word[1]);
    }
    if (words == 2 && strcmp(verb, "migoff") == 0) {
        f->kind = MIGOFF;
        return is_device(f, word[1]);
    }
    return false;
}

static void read_line(char *line)
{
    char copy[256];
    char *word[6], *state = NULL;
    int words = 0;
    line[strcspn(line, "#\r\n")] = '\0';
    snprintf(copy, sizeof copy, "%s", line);
    for (char *w = strtok_r(line, " \t", &state); w != NULL && words < 6; w = strtok_r(NULL, " \t", &state))
        word[words++] = w;
    if (words == 0)
        return;
    struct fault f = {0};
    if (!parse(&f, word, words)) {
        fprintf(stderr, "fakenvml: %s: line ignored: %s\n", path, copy);
        return;
    }
    faults = grow(faults, count, sizeof f);
    faults[count++] = f;
}

static void clear(void)
{
    free(faults);
    faults = NULL;
    count = 0;
}

static bool same(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

void control_refresh(void)
{
    static const struct stat none;
    struct stat current;
    if (path == NULL)
        return;
    if (stat(path, &current) != 0)
        current = none;
    if (same(&current, &seen))
        return;
    FILE *file = fopen(path, "r");
    clear();
    seen = none;
    if (file == NULL)
        return;
    /* What was opened counts, should the file have been replaced in between. */
    if (fstat(fileno(file), &seen) != 0)
        seen = none;
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, file) >= 0)
        read_line(line);
    free(line);
    fclose(file);
}

/* The last line of a kind wins, so that a test can append to a file. */
static const struct fault *last(enum kind kind)
{
    for (size_t i = count; i-- > 0;)
        if (faults[i].kind == kind)
            return &faults[i];
    return NULL;
}

double control_delay(const char *function)
{
    double seconds = 0;
    for (size_t i = 0; i < count; i++)
        if (faults[i].kind == SLEEP && strcmp(faults[i].function, function) == 0)
            seconds += faults[i].value;
    return seconds;
}

nvmlReturn_t control_init(void)
{
    const struct fault *f = last(INIT);
    return f != NULL ? f->error : NVML_SUCCESS;
}

nvmlReturn_t control_error(const char *function, const struct nvmlDevice_st *device)
{
    for (size_t i = count; i-- > 0;) {
        const struct fault *f = &faults[i];
        if (f->kind == ERROR && strcmp(f->function, function) == 0 && selects(f->device, device))
            return f->error;
    }
    return NVML_SUCCESS;
}

static bool any(enum kind kind, const struct nvmlDevice_st *device)
{
    for (size_t i = 0; i < count; i++)
        if (faults[i].kind == kind && selects(faults[i].device, device))
            return true;
    return false;
}

bool control_lost(const struct nvmlDevice_st *device)
{
    return any(LOST, device) || (device->parent != NULL && any(LOST, device->parent));
}

bool control_migoff(const struct nvmlDevice_st *gpu)
{
    return any(MIGOFF, gpu);
}

bool control_gpmoff(const struct nvmlDevice_st *gpu)
{
    return any(GPMOFF, gpu);
}

unsigned int control_count(unsigned int have)
{
    const struct fault *f = last(COUNT);
    return f != NULL && f->value < have ? (unsigned int)f->value : have;
}

const char *control_reload(void)
{
    const struct fault *f = last(RELOAD);
    return f != NULL ? f->token : NULL;
}

/* How many events the file has for a device; the one after the first few is in event. */
unsigned int control_events(const struct nvmlDevice_st *device, unsigned int after, struct event *event)
{
    unsigned int n = 0;
    for (size_t i = 0; i < count; i++)
        if ((faults[i].kind == XID_EVENT || faults[i].kind == MIG_EVENT) && selects(faults[i].device, device) && n++ == after) {
            event->type = faults[i].kind == MIG_EVENT ? nvmlEventMigConfigChange : nvmlEventTypeXidCriticalError;
            event->data = (unsigned long long)faults[i].value;
        }
    return n;
}

bool control_time(double *seconds)
{
    const struct fault *f = last(TIME);
    if (f != NULL)
        *seconds = f->value;
    return f != NULL;
}

bool control_set(const struct nvmlDevice_st *device, enum column column, nvmlReturn_t *status, double *value)
{
    for (size_t i = count; i-- > 0;) {
        const struct fault *f = &faults[i];
        if (f->kind == SET && f->column == (int)column && selects(f->device, device)) {
            *status = f->error;
            *value = f->value;
            return true;
        }
    }
    return false;
}
