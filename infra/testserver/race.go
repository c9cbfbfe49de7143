//go:build race

package testserver

// Raced tells that this is built with the race detector.
const Raced = true
