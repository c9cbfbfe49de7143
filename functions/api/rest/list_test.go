package rest_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
)

type userList struct {
	Items      []struct{ ID, Username string }
	NextCursor string
}

// names lists all users, page by page, calling between after each.
func (f *fixture) names(query string, limit int, between func(page userList)) (names []string) {
	f.Helper()
	cursor := ""
	for {
		var page userList
		f.call("GET", fmt.Sprintf("/v1/users?limit=%d&cursor=%s&%s", limit, cursor, query), f.key, nil).want(200).decode(&page)
		if len(page.Items) > limit || len(page.Items) < limit && page.NextCursor != "" {
			f.Errorf("a page of %d users of %d, and more is %t", len(page.Items), limit, page.NextCursor != "")
		}
		for _, u := range page.Items {
			names = append(names, u.Username)
		}
		if page.NextCursor == "" {
			return names
		}
		cursor = url.QueryEscape(page.NextCursor)
		between(page)
	}
}

// TestPages lists users while others are made and deleted: who was there
// throughout is listed once, by name.
func TestPages(t *testing.T) {
	f := newFixture(t)
	ids := map[string]string{}
	create := func(name string) {
		ids[name] = f.call("POST", "/v1/users", f.key, object{"username": name}).want(201).text("id")
	}
	var there []string
	n := testserver.Rounds(500, 130)
	for i := range n {
		name := fmt.Sprintf("member%03d", (i*137)%n) // in no order
		if i%2 == 0 {
			name = strings.ToUpper(name) // which makes no difference
		}
		there = append(there, name)
		create(name)
	}
	byName := func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) }
	slices.SortFunc(there, byName)

	var ahead, behind []string
	got := f.names("", 7, func(page userList) {
		last := page.Items[len(page.Items)-1].Username
		behind = append(behind, "member000x"+last)
		create(behind[len(behind)-1])
		ahead = append(ahead, last+"x")
		create(ahead[len(ahead)-1])
	})
	if !slices.IsSortedFunc(got, byName) {
		t.Error("the users are not listed by name")
	}
	want := slices.SortedFunc(slices.Values(slices.Concat(there, ahead)), byName)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("users listed while others were made (-want +got):\n%s", diff)
	}

	// Deleting the user that a cursor points at loses nobody.
	left := slices.SortedFunc(slices.Values(slices.Concat(there, ahead, behind)), byName)
	got = f.names("", 100, func(page userList) {
		last := page.Items[len(page.Items)-1].Username
		f.call("DELETE", "/v1/users/"+ids[last], f.key, nil).want(204)
	})
	if diff := cmp.Diff(left, got); diff != "" {
		t.Errorf("users listed while others were deleted (-want +got):\n%s", diff)
	}

	for _, prefix := range []string{"member04", "MEMBER04"} {
		var want []string
		for _, name := range f.names("", 200, func(userList) {}) {
			if strings.HasPrefix(strings.ToLower(name), "member04") {
				want = append(want, name)
			}
		}
		if len(want) < 10 {
			t.Fatalf("only %d users to find", len(want))
		}
		if diff := cmp.Diff(want, f.names("prefix="+prefix, 3, func(userList) {})); diff != "" {
			t.Errorf("users with prefix %s (-want +got):\n%s", prefix, diff)
		}
	}
	if got := f.names("prefix=nobody", 7, func(userList) {}); len(got) != 0 {
		t.Errorf("users with the prefix nobody: %v", got)
	}
	var one userList
	f.call("GET", "/v1/users?username=Member123", f.key, nil).want(200).decode(&one)
	if len(one.Items) != 1 || !strings.EqualFold(one.Items[0].Username, "member123") {
		t.Errorf("the user named Member123 is %+v", one.Items)
	}
}

// TestOrder: a name comes before the longer ones that begin with it.
func TestOrder(t *testing.T) {
	f := newFixture(t)
	want := []string{"ann", "ann lee", "ann!", "ann-lee", "ann.lee", "ann0", "anna"}
	for _, name := range want {
		f.call("POST", "/v1/users", f.key, object{"username": name}).want(201)
	}
	if diff := cmp.Diff(want, f.names("", 3, func(userList) {})); diff != "" {
		t.Errorf("users (-want +got):\n%s", diff)
	}
}

// TestNamesThatLookLikeKeys: no name reaches beyond its own tenant's users, or
// hides another's.
func TestNamesThatLookLikeKeys(t *testing.T) {
	f := newFixture(t)
	names := []string{"a", "a/b", "a%2Fb", "a%", "a b", "../a", "a\u00e4", "a\u0308", "ａ/", "\U0010FFFD", "ζ"}
	for _, name := range names {
		f.call("POST", "/v1/users", f.key, object{"username": name}).want(201)
	}
	if got := f.names("", 2, func(userList) {}); len(got) != len(names) {
		t.Errorf("%d users are listed, want %d: %q", len(got), len(names), got)
	}
	for _, name := range names {
		var list userList
		f.call("GET", "/v1/users?username="+url.QueryEscape(name), f.key, nil).want(200).decode(&list)
		if len(list.Items) != 1 || list.Items[0].Username != name {
			t.Errorf("the user named %q is %+v", name, list.Items)
		}
		f.call("POST", "/v1/users", f.key, object{"username": name}).want(422)
	}
}

// TestAuditPages reads the audit log, newest first, without gap.
func TestAuditPages(t *testing.T) {
	f := newFixture(t)
	user := f.user(f.key, "")
	for range 23 {
		f.call("PUT", "/v1/users/"+user+"/pin", f.key, object{"pin": f.pin()}).want(200)
		f.clock.advance(1e6) // 1 ms
	}
	for _, query := range []string{"subject=user/" + user, "day=2030-01-31"} {
		var ids []string
		set, cursor := 0, ""
		for {
			var page struct {
				Items []struct {
					ID, Action, RequestID string
					By                    struct{ How, Name string }
				}
				NextCursor string
			}
			f.call("GET", "/v1/audit?limit=5&"+query+"&cursor="+cursor, f.key, nil).want(200).decode(&page)
			for _, r := range page.Items {
				ids = append(ids, r.ID)
				if r.Action == "pin.set" {
					set++
					if r.By.How != "api" || r.By.Name != "first administrator" || r.RequestID == "" {
						t.Errorf("record %+v does not tell who did it, and in which request", r)
					}
				}
			}
			if cursor = page.NextCursor; cursor == "" {
				break
			}
		}
		if !slices.IsSortedFunc(ids, func(a, b string) int { return strings.Compare(b, a) }) || len(slices.Compact(ids)) != len(ids) {
			t.Errorf("%s: records are not newest first, each once: %v", query, ids)
		}
		if set != 23 {
			t.Errorf("%s: %d PINs set, want 23", query, set)
		}
	}
}
