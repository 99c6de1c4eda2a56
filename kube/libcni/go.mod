// The library by which containerd 1.6 and 1.7, and CRI-O of their time, ask plugins.
module tartan/libcni

go 1.26.6

require github.com/containernetworking/cni v1.1.2 // indirect

tool github.com/containernetworking/cni/cnitool
