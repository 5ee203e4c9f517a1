package fakenvml

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

// A process has one NVML, bound once and for all, with the environment of the
// moment of loading. So each test runs in a process of its own: this binary
// again, with these variables.
const (
	childVar   = "FAKENVML_TEST_CHILD"
	libraryVar = "FAKENVML_TEST_LIBRARY"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVar) != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "fakenvml")
	if err != nil {
		panic(err)
	}
	path, err := Build(dir)
	if err != nil {
		panic(err)
	}
	if err := os.Setenv(libraryVar, path); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// lab is NVML on the fake driver, with the means to disturb it.
type lab struct {
	nvml.Interface
	control *Control
	t       *testing.T
}

// start runs the test in a child with the small fixture and more environment.
// It returns nil in the parent, which has nothing left to do, and in the child
// NVML, not initialised yet.
func start(t *testing.T, env ...string) *lab {
	t.Helper()
	if os.Getenv(childVar) == "" {
		t.Parallel()
		out := runChild(t, t.TempDir(), env...)
		t.Log(out)
		return nil
	}
	return &lab{
		Interface: nvml.New(nvml.WithLibraryPath(os.Getenv(libraryVar))),
		control:   NewControl(os.Getenv("FAKENVML_CONTROL")),
		t:         t,
	}
}

// runChild runs the calling test again, and returns what it printed.
func runChild(t *testing.T, dir string, env ...string) string {
	t.Helper()
	small, err := filepath.Abs("testdata/small.csv")
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), childVar+"=1",
		"FAKENVML_FIXTURE="+small, "FAKENVML_CONTROL="+filepath.Join(dir, "control"),
		"GORACE=atexit_sleep_ms=0") // else each child ends with a second of nothing
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
	return string(out)
}

// set puts faults in place of the current ones, the clock stopped at 0 if they
// do not say otherwise.
func (l *lab) set(lines ...string) {
	l.t.Helper()
	require.NoError(l.t, l.control.Set(append([]string{"time 0"}, lines...)...))
}

func (l *lab) init(lines ...string) {
	l.t.Helper()
	l.set(lines...)
	require.Equal(l.t, nvml.SUCCESS, l.Init())
}

func (l *lab) gpu(index int) nvml.Device {
	l.t.Helper()
	d, ret := l.DeviceGetHandleByIndex(index)
	require.Equal(l.t, nvml.SUCCESS, ret)
	return d
}

func (l *lab) mig(gpu, index int) nvml.Device {
	l.t.Helper()
	d, ret := l.gpu(gpu).GetMigDeviceHandleByIndex(index)
	require.Equal(l.t, nvml.SUCCESS, ret)
	return d
}

// got checks a getter's result: got(t, want)(device.GetX()).
func got[T any](t *testing.T, want T) func(T, nvml.Return) {
	t.Helper()
	return func(v T, ret nvml.Return) {
		t.Helper()
		require.Equal(t, nvml.SUCCESS, ret)
		require.Equal(t, want, v)
	}
}

// fails checks a getter's error.
func fails[T any](t *testing.T, want nvml.Return) func(T, nvml.Return) {
	t.Helper()
	return func(_ T, ret nvml.Return) {
		t.Helper()
		require.Equal(t, want, ret)
	}
}

func TestBuildReportsTheCompiler(t *testing.T) {
	if os.Getenv(childVar) != "" {
		t.Skip("needs no driver")
	}
	t.Setenv("CC", "gcc -include /nonexistent.h")
	_, err := Build(t.TempDir())
	require.ErrorContains(t, err, "/nonexistent.h")
	t.Setenv("CC", "no-such-compiler")
	_, err = Build(t.TempDir())
	require.ErrorContains(t, err, "no-such-compiler")
}

func TestBuildFromAnywhere(t *testing.T) {
	if os.Getenv(childVar) != "" {
		t.Skip("needs no driver")
	}
	t.Chdir(t.TempDir())
	path, err := Build("out")
	require.NoError(t, err)
	require.Equal(t, filepath.Join("out", Name), path)
	left, err := os.ReadDir("out")
	require.NoError(t, err)
	require.Len(t, left, 1, "leftovers")
}

func TestNoFixture(t *testing.T) {
	if os.Getenv(childVar) == "" {
		out := runChild(t, t.TempDir(), "FAKENVML_FIXTURE=")
		require.Equal(t, 1, strings.Count(out, "FAKENVML_FIXTURE is not set"), out)
		return
	}
	l := start(t)
	require.Equal(t, nvml.ERROR_DRIVER_NOT_LOADED, l.Init())
	require.Equal(t, nvml.ERROR_DRIVER_NOT_LOADED, l.Init())
	fails[int](t, nvml.ERROR_UNINITIALIZED)(l.DeviceGetCount())
}

func TestBadFixtures(t *testing.T) {
	if os.Getenv(childVar) != "" {
		l := start(t)
		require.Equal(t, nvml.ERROR_DRIVER_NOT_LOADED, l.Init())
		return
	}
	const head = "# gpuscaler fixture v1\nt,index,id,parent,memory_used_mib,processes\n"
	for text, want := range map[string]string{
		"":                                      "bad.csv",
		"t,index,id\n":                          "line 1: the first line is not: # gpuscaler fixture v1",
		"# gpuscaler fixture v1\nt,index\n":     "line 2: a column is missing: id",
		"# gpuscaler fixture v1\nt,index,id,t":  "line 2: a column appears twice: t",
		head:                                    "there are no samples",
		head + "0,0,GPU-a,,1":                   "line 3: the number of cells",
		head + "0,0,GPU-a,,x,":                  "line 3: not a number, !REASON or empty: x",
		head + "0,0,,,1,":                       "line 3: id is empty",
		head + "-1,0,GPU-a,,1,":                 "line 3: t is not a number",
		head + "0,x,GPU-a,,1,":                  "line 3: index is not a number",
		head + "0,0,MIG-a,GPU-a,1,":             "line 3: parent is no GPU of the lines above: GPU-a",
		head + "0,0,GPU-a,,1,7":                 "line 3: processes is not pid:MiB;pid:MiB: 7",
		head + "1,0,GPU-a,,1,\n0,0,GPU-a,,1,":   "line 4: t is before the line above: 0",
		head + "0,0,GPU-a,,1,\n\n0,0,GPU-a,,1,": "line 5: a device appears twice in one sample: GPU-a",
		head + "0,0,\"GPU-a\",,1,":              "quoted cells are not supported",
	} {
		path := filepath.Join(t.TempDir(), "bad.csv")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		require.Contains(t, runChild(t, t.TempDir(), "FAKENVML_FIXTURE="+path), want)
	}
}

func TestSystem(t *testing.T) {
	l := start(t, "FAKENVML_DRIVER=570.1.2")
	if l == nil {
		return
	}
	l.init()
	got(t, "570.1.2")(l.SystemGetDriverVersion())
	got(t, "13.570.1.2")(l.SystemGetNVMLVersion())
	got(t, 13000)(l.SystemGetCudaDriverVersion_v2())
	got(t, 3)(l.DeviceGetCount())
	require.Equal(t, "GPU is lost", l.ErrorString(nvml.ERROR_GPU_IS_LOST))

	// Initialisation is counted.
	require.Equal(t, nvml.SUCCESS, l.InitWithFlags(0))
	require.Equal(t, nvml.SUCCESS, l.Shutdown())
	got(t, 3)(l.DeviceGetCount())
	device := l.gpu(0)
	require.Equal(t, nvml.SUCCESS, l.Shutdown())
	fails[string](t, nvml.ERROR_UNINITIALIZED)(device.GetUUID())
	require.Equal(t, nvml.ERROR_UNINITIALIZED, l.Shutdown())
	require.Equal(t, nvml.SUCCESS, l.Init())
	got(t, "NVIDIA H200")(device.GetName())
}

func TestAbsentSymbols(t *testing.T) {
	hidden := []string{"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCount_v2", "nvmlInit_v2"}
	l := start(t, "FAKENVML_ABSENT="+strings.Join(hidden, ",")+",nvmlNoSuchThing")
	if l == nil {
		return
	}
	l.init()
	for _, name := range hidden {
		require.Error(t, l.Extensions().LookupSymbol(name), name)
	}
	for _, name := range []string{"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCount", "nvmlGpmMetricsGet", "nvmlInit"} {
		require.NoError(t, l.Extensions().LookupSymbol(name), name)
	}
	got(t, 3)(l.DeviceGetCount()) // go-nvml falls back to the first version
	_, ret := l.gpu(0).GetMemoryInfo()
	require.Equal(t, nvml.SUCCESS, ret)
}

func TestAbsentSymbolKillsItsCaller(t *testing.T) {
	if os.Getenv(childVar) != "" {
		l := start(t)
		l.init()
		_, _ = l.gpu(0).GetMemoryInfo_v2()
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), childVar+"=1", "FAKENVML_ABSENT=nvmlDeviceGetMemoryInfo_v2",
		"FAKENVML_FIXTURE=testdata/small.csv", "FAKENVML_CONTROL="+filepath.Join(dir, "control"))
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "undefined symbol: nvmlDeviceGetMemoryInfo_v2", fmt.Sprint(err))
}
