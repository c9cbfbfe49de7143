package mail

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// ErrNotPublic is the error of PublicDial for an address that is not Public.
var ErrNotPublic = errors.New("not a public address")

// special are the ranges of IANA's special-purpose registries that netip does not tell
// from public ones, and those of IPv6 that hold an IPv4 address.
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
	"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)

// unicast is all that is allocated of IPv6 (RFC 4291, section 2.4).
var unicast = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		ps[i] = netip.MustParsePrefix(s)
	}
	return ps
}

// Public tells whether an address is one of the public internet: neither this machine's
// nor its network's, nor one that such an address may hide in.
func Public(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && (ip.Is4() || unicast.Contains(ip)) &&
		!slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// PublicDial dials public addresses only, whatever a name resolves to. It is how an
// installation dials what its tenants name, who must not reach into its own network.
func PublicDial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error { // after the name was resolved
		ap, err := netip.ParseAddrPort(address)
		if err != nil || !Public(ap.Addr()) {
			return ErrNotPublic
		}
		return nil
	}}
	return d.DialContext(ctx, network, address)
}
