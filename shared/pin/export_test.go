package pin

// MostUsed lets the oracle read the list, which is data, not a rule.
var MostUsed = mostUsed
