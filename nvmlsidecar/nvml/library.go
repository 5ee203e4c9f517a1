package nvml

import (
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/dl"

	"gpuscaler/shared/snapshot"
)

// whyNotLoaded is why the dynamic linker cannot load a library, with the name of the
// file: "libnvidia-ml.so.1: cannot open shared object file: No such file or directory".
// It is "" where it can: then the library itself misses another. go-nvml drops the
// linker's reason, so the library is loaded once more; that calls no function of NVML.
func whyNotLoaded(library string) string {
	l := dl.New(library, dl.RTLD_LAZY)
	err := l.Open()
	if err == nil {
		_ = l.Close() // the linker counts: go-nvml keeps its own
		return ""
	}
	reason := err.Error()
	if !strings.Contains(reason, library) { // it names a library that this one needs
		reason = library + ": " + reason
	}
	return snapshot.Text(reason)
}
