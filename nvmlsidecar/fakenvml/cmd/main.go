// Command cmd builds the stand-in for libnvidia-ml.so.1 into a folder:
//
//	go run ./nvmlsidecar/fakenvml/cmd OUTDIR
package main

import (
	"fmt"
	"os"

	"gpuscaler/nvmlsidecar/fakenvml"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./nvmlsidecar/fakenvml/cmd OUTDIR")
		os.Exit(2)
	}
	path, err := fakenvml.Build(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(path)
}
