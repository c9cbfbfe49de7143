package table

import (
	"cmp"
	"context"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Merge reads ranges that are shards of one list as if they were one: it
// returns the first items of all together, at most limit, that come after the
// place beyond ("" is the start), and the place to go on from, which is "" if
// nothing comes after. All ranges are of one index and one direction. Each is
// queried once, all at the same time, for limit items.
func Merge(ctx context.Context, t Table, ranges []Range, limit int, beyond string) (page Page, next string, err error) {
	limit = min(max(limit, 1), MaxLimit)
	pages := make([]Page, len(ranges))
	g, ctx := errgroup.WithContext(ctx)
	for i, r := range ranges {
		g.Go(func() (err error) {
			pages[i], err = t.Query(ctx, r.Limit(limit).Beyond(beyond))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return Page{}, "", err
	}
	for _, p := range pages {
		page.Items = append(page.Items, p.Items...)
		page.More = page.More || p.More
	}
	if len(page.Items) == 0 {
		return Page{}, "", nil
	}
	r := ranges[0]
	slices.SortFunc(page.Items, func(a, b Item) int {
		if r.descending {
			a, b = b, a
		}
		return cmp.Compare(r.Place(a), r.Place(b))
	})
	if len(page.Items) > limit {
		page.Items, page.More = page.Items[:limit], true
	}
	if page.More {
		next = r.Place(page.Items[len(page.Items)-1])
	}
	return page, next, nil
}
