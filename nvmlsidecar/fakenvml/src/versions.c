/* Which functions a driver has: those that its nvml.h declares. */
#include "fake.h"

#include <stdlib.h>

/*
 * By the first nvml.h that has them, in the history of github.com/NVIDIA/go-nvml
 * (gen/nvml/nvml.h), which has one for each CUDA version; the driver is the one
 * that this version comes with. All others that are played are in the first,
 * of CUDA 11.0 and driver 450.
 */
static const struct {
    const char *symbol;
    int since;
} added[] = {
    {"nvmlDeviceGetMemoryInfo_v2", 510},              /* 11.6 */
    {"nvmlDeviceGetComputeRunningProcesses_v3", 510}, /* 11.6 */
    {"nvmlGpmQueryDeviceSupport", 520},               /* 11.8 */
    {"nvmlGpmSampleAlloc", 520},
    {"nvmlGpmSampleFree", 520},
    {"nvmlGpmSampleGet", 520},
    {"nvmlGpmMetricsGet", 520},
    {"nvmlGpmMigSampleGet", 525},                    /* 12.0 */
    {"nvmlDeviceGetCurrentClocksEventReasons", 535}, /* 12.2 */
    {"nvmlGpmQueryIfStreamingEnabled", 535},
    {"nvmlDeviceGetTemperatureV", 570}, /* 12.8 */
};

void symbols_of(const char *version)
{
    int branch = atoi(version);
    for (size_t i = 0; branch > 0 && i < sizeof added / sizeof *added; i++)
        if (added[i].since > branch)
            symbols_hide(added[i].symbol);
}
