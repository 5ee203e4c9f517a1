/* The names of NVML's errors, for fixtures, the control file and people. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>

#define E(name, text) {NVML_ERROR_##name, #name, text}

static const struct {
    nvmlReturn_t code;
    const char *name, *text;
} errors[] = {
    {NVML_SUCCESS, "SUCCESS", "Success"},
    E(UNINITIALIZED, "Uninitialized"),
    E(INVALID_ARGUMENT, "Invalid Argument"),
    E(NOT_SUPPORTED, "Not Supported"),
    E(NO_PERMISSION, "Insufficient Permissions"),
    E(ALREADY_INITIALIZED, "Already Initialized"),
    E(NOT_FOUND, "Not Found"),
    E(INSUFFICIENT_SIZE, "Insufficient Size"),
    E(INSUFFICIENT_POWER, "Insufficient External Power"),
    E(DRIVER_NOT_LOADED, "Driver Not Loaded"),
    E(TIMEOUT, "Timeout"),
    E(IRQ_ISSUE, "Interrupt Request Issue"),
    E(LIBRARY_NOT_FOUND, "NVML Shared Library Not Found"),
    E(FUNCTION_NOT_FOUND, "Function Not Found"),
    E(CORRUPTED_INFOROM, "Corrupted infoROM"),
    E(GPU_IS_LOST, "GPU is lost"),
    E(RESET_REQUIRED, "GPU requires reset"),
    E(OPERATING_SYSTEM, "Blocked by the operating system"),
    E(LIB_RM_VERSION_MISMATCH, "Driver/library version mismatch"),
    E(IN_USE, "In use by another client"),
    E(MEMORY, "Insufficient Memory"),
    E(NO_DATA, "No data"),
    E(VGPU_ECC_NOT_SUPPORTED, "vGPU with ECC is not supported"),
    E(INSUFFICIENT_RESOURCES, "Insufficient resources"),
    E(FREQ_NOT_SUPPORTED, "Frequency not supported"),
    E(ARGUMENT_VERSION_MISMATCH, "Argument version mismatch"),
    E(DEPRECATED, "Deprecated"),
    E(NOT_READY, "Not ready"),
    E(GPU_NOT_FOUND, "No GPU found"),
    E(INVALID_STATE, "Invalid state"),
    E(RESET_TYPE_NOT_SUPPORTED, "Reset type not supported"),
    E(UNKNOWN, "Unknown Error"),
};

#define ERRORS (sizeof errors / sizeof *errors)

bool error_named(const char *name, nvmlReturn_t *code)
{
    static const char prefix[] = "NVML_ERROR_";
    char *end;
    long number = strtol(name, &end, 10);
    if (end != name && *end == '\0' && number > 0 && number < 1000) {
        *code = (nvmlReturn_t)number;
        return true;
    }
    if (strncmp(name, prefix, sizeof prefix - 1) == 0)
        name += sizeof prefix - 1;
    for (size_t i = 1; i < ERRORS; i++) /* SUCCESS is no error */
        if (strcmp(name, errors[i].name) == 0) {
            *code = errors[i].code;
            return true;
        }
    return false;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
    for (size_t i = 0; i < ERRORS; i++)
        if (errors[i].code == result)
            return errors[i].text;
    return "Unknown Error code";
}
