package testserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// Transactions stands in front of a DynamoDB that knows no TransactWriteItems
// and carries them out by plain calls: each op with its condition, and if one
// is refused, all that were done are undone. Meanwhile other requests wait, so
// nobody sees half a transaction. endpoint is the DynamoDB's URL; the tables'
// keys must be named p and s.
func Transactions(endpoint string) (http.Handler, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	return &transactions{endpoint: endpoint, plain: httputil.NewSingleHostReverseProxy(u), done: map[string]bool{}}, nil
}

type transactions struct {
	endpoint string
	plain    http.Handler
	mu       sync.RWMutex
	done     map[string]bool // request tokens of transactions that succeeded
}

const dynamoTarget = "DynamoDB_20120810."

func (t *transactions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Amz-Target") != dynamoTarget+"TransactWriteItems" {
		t.mu.RLock()
		defer t.mu.RUnlock()
		t.plain.ServeHTTP(w, r)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	status, answer := http.StatusOK, []byte("{}")
	body, err := io.ReadAll(r.Body)
	if err == nil {
		status, answer, err = t.transact(r.Header, body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(answer)), 10))
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}

type object = map[string]json.RawMessage

// transact returns the status and body of the answer.
func (t *transactions) transact(header http.Header, body []byte) (int, []byte, error) {
	var in struct {
		TransactItems      []map[string]object // the op's name, its parameters
		ClientRequestToken string
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return 0, nil, err
	}
	if t.done[in.ClientRequestToken] {
		return http.StatusOK, []byte("{}"), nil
	}
	var undo []func() error
	undone := func() (err error) {
		for _, u := range undo {
			err = errors.Join(err, u())
		}
		return err
	}
	reasons := make([]map[string]string, len(in.TransactItems))
	refused := false
	for i, ops := range in.TransactItems {
		for name, op := range ops {
			// A check is an update that sets nothing: where there is no item it makes
			// one, which is taken away at once.
			operation := map[string]string{"Put": "PutItem", "Delete": "DeleteItem", "ConditionCheck": "UpdateItem"}[name]
			op["ReturnValues"] = json.RawMessage(`"ALL_OLD"`)
			status, answer, err := t.call(header, operation, op)
			if err != nil {
				return 0, nil, err
			}
			var out struct {
				Type       string `json:"__type"`
				Attributes json.RawMessage
			}
			if err := json.Unmarshal(answer, &out); err != nil {
				return 0, nil, err
			}
			back := func() error { return t.restore(header, op, out.Attributes) }
			reasons[i] = map[string]string{"Code": "None"}
			switch {
			case status == http.StatusOK && name == "ConditionCheck":
				if err := back(); err != nil {
					return 0, nil, err
				}
			case status == http.StatusOK:
				undo = append(undo, back)
			case strings.HasSuffix(out.Type, "#ConditionalCheckFailedException"):
				refused = true
				reasons[i] = map[string]string{"Code": "ConditionalCheckFailed", "Message": "The conditional request failed"}
			default: // the request is wrong as a whole
				return status, answer, undone()
			}
		}
	}
	if !refused {
		t.done[in.ClientRequestToken] = in.ClientRequestToken != ""
		return http.StatusOK, []byte("{}"), nil
	}
	answer, err := json.Marshal(map[string]any{
		"__type":              "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
		"Message":             "Transaction cancelled",
		"CancellationReasons": reasons,
	})
	return http.StatusBadRequest, answer, errors.Join(err, undone())
}

// restore puts the item that an op changed back to what it was; nil is none.
func (t *transactions) restore(header http.Header, op object, was json.RawMessage) error {
	operation, in := "PutItem", object{"TableName": op["TableName"], "Item": was}
	if was == nil {
		key := op["Key"]
		if key == nil { // of a put
			var item object
			if err := json.Unmarshal(op["Item"], &item); err != nil {
				return err
			}
			key, _ = json.Marshal(object{"p": item["p"], "s": item["s"]})
		}
		operation, in = "DeleteItem", object{"TableName": op["TableName"], "Key": key}
	}
	status, answer, err := t.call(header, operation, in)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("half a transaction was done: %s", answer)
	}
	return err
}

// call makes a plain request with the headers of the one that came.
func (t *transactions) call(header http.Header, operation string, in object) (status int, answer []byte, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return 0, nil, err
	}
	r, err := http.NewRequest(http.MethodPost, t.endpoint, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header = header.Clone()
	r.Header.Set("X-Amz-Target", dynamoTarget+operation)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}
