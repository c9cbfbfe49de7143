package tenant

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/table"
)

// Policy is a tenant's PIN policy at a version. Every PIN remembers the version
// that accepted it; a change of policy leaves the PINs there are.
type Policy struct {
	pin.Policy
	Version int64
}

// PolicyVersion is a policy as it was, and since when.
type PolicyVersion struct {
	Policy
	Since time.Time
}

// policyRecord is the policy in force as stored.
type policyRecord struct {
	tenant table.TenantID
	Policy
}

// policyVersionRecord is one version of the policy as stored.
type policyVersionRecord struct {
	tenant table.TenantID
	Policy
	since time.Time
}

// storedPolicyVersion is a past or present version.
type storedPolicyVersion struct {
	Policy  pin.Policy `json:"policy"`
	Version int64      `json:"version"`
	Since   time.Time  `json:"since"`
}

// Item implements table.Record.
func (r policyRecord) Item() (table.Item, error) {
	data, err := json.Marshal(r.Policy.Policy)
	return table.Item{Key: table.PolicyKey(r.tenant), Data: data}, err
}

// Item implements table.Record.
func (r policyVersionRecord) Item() (table.Item, error) {
	data, err := json.Marshal(storedPolicyVersion{r.Policy.Policy, r.Version, r.since})
	return table.Item{Key: table.PolicyVersionKey(r.tenant, r.Version), Data: data}, err
}

func decodePolicy(item table.Item) (Policy, error) {
	p := Policy{Version: item.Version}
	return p, item.Decode(&p.Policy)
}

// ChangePolicy replaces a tenant's PIN policy if it still has the version that
// core was read at.
func (ts *Tenants) ChangePolicy(ctx context.Context, by audit.Actor, core Core, p pin.Policy) (Policy, error) {
	id, was := core.Tenant.ID, core.Policy.Version
	policy := Policy{p, was + 1}
	err := ts.Table.Write(ctx,
		table.Put(&policyRecord{id, policy}, table.IfVersion(was)),
		table.Put(&policyVersionRecord{id, policy, ts.Now().UTC().Truncate(time.Second)}, table.Absent()),
		ts.Audit.Op(ctx, id, audit.Record{Actor: by, Action: "policy.changed", Subject: "policy", Outcome: audit.Done,
			Details: map[string]string{"version": fmt.Sprint(policy.Version)}}))
	if err != nil {
		return Policy{}, fmt.Errorf("change PIN policy: %w", err)
	}
	return policy, nil
}

// PolicyVersions returns the policies that the tenant had, oldest first, the
// last table.MaxLimit of them.
func (ts *Tenants) PolicyVersions(ctx context.Context, id table.TenantID) ([]PolicyVersion, error) {
	page, err := ts.Table.Query(ctx, table.PolicyVersions(id).Descending())
	if err != nil {
		return nil, fmt.Errorf("list policy versions: %w", err)
	}
	versions := make([]PolicyVersion, len(page.Items))
	for i, item := range page.Items {
		var s storedPolicyVersion
		if err := item.Decode(&s); err != nil {
			return nil, err
		}
		versions[len(versions)-1-i] = PolicyVersion{Policy{s.Policy, s.Version}, s.Since}
	}
	return versions, nil
}
