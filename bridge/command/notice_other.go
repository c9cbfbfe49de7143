//go:build !windows

package command

import "context"

// showAtConsole shows nothing: a service has no place of its own to do so.
func showAtConsole(context.Context, string) error { return nil }
