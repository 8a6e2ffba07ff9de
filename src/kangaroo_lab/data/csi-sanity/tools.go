// What the lab runs of the CSI project's conformance suite, named so that the module pins it.

//go:build tools

package tools

import _ "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
