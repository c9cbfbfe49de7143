package testserver

// Rounds is how often a test does what it does by many seeds, calls or items: whole, or few
// with the race detector, which makes each some ten times slower and learns of the same code
// nothing new. All tests are run without it too.
func Rounds(whole, few int) int {
	if Raced {
		return few
	}
	return whole
}
