//go:build race

package unblock

const raceDetector = true
