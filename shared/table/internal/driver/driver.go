// Package driver is the right to make keys from stored strings. Only package
// table and what lies under it can import it, so the compiler keeps all others
// to the key constructors, which take the tenant.
package driver

// Only is shown by a driver that restores what it stored.
type Only struct{ _ struct{} }
