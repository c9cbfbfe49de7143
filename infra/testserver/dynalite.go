package testserver

// Dynalite starts a DynamoDB that keeps its tables in memory and knows no
// transactions, TTL and streams. endpoint is its URL; any credentials will do.
func Dynalite() (endpoint string, stop func(), err error) {
	host, port, err := freeAddress()
	if err != nil {
		return "", nil, err
	}
	stop, err = node("dynalite", "cli.js", []string{
		"--host", host, "--port", port,
		"--createTableMs", "0", "--deleteTableMs", "0", "--updateTableMs", "0",
	}, nil, answers(host, port))
	if err != nil {
		return "", nil, err
	}
	return "http://" + host + ":" + port, stop, nil
}
