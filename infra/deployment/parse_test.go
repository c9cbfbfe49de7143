package deployment

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"go.yaml.in/yaml/v3"
)

type object = map[string]any

// parse reads a template. A tag becomes the function that it is short for: !Ref
// x is {"Ref": x}, !Sub x is {"Fn::Sub": x}.
func parse(text string) (object, error) {
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		return nil, err
	}
	v, err := value(n.Content[0])
	if err != nil {
		return nil, err
	}
	o, _ := v.(object)
	return o, nil
}

func value(n *yaml.Node) (any, error) {
	if tag, ok := strings.CutPrefix(n.Tag, "!"); ok && !strings.HasPrefix(tag, "!") {
		bare := *n
		bare.Tag = map[yaml.Kind]string{yaml.ScalarNode: "!!str", yaml.SequenceNode: "!!seq"}[n.Kind]
		v, err := value(&bare)
		switch tag {
		case "Ref":
			return object{tag: v}, err
		case "GetAtt", "Sub", "If", "Not", "Equals":
			return object{"Fn::" + tag: v}, err
		}
		return nil, fmt.Errorf("line %d: unknown tag !%s", n.Line, tag)
	}
	switch n.Kind {
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			var err error
			if list[i], err = value(c); err != nil {
				return nil, err
			}
		}
		return list, nil
	case yaml.MappingNode:
		o := object{}
		for i := 0; i < len(n.Content); i += 2 {
			name := n.Content[i].Value
			if _, twice := o[name]; twice {
				return nil, fmt.Errorf("line %d: %s is given twice", n.Content[i].Line, name)
			}
			var err error
			if o[name], err = value(n.Content[i+1]); err != nil {
				return nil, err
			}
		}
		return o, nil
	}
	var v any
	err := n.Decode(&v)
	return v, err
}

// at returns what stands at a path, or nil.
func at(v any, path ...string) any {
	for _, name := range path {
		o, _ := v.(object)
		v = o[name]
	}
	return v
}

// walk visits every object within v.
func walk(v any, visit func(object)) {
	switch v := v.(type) {
	case object:
		visit(v)
		for _, c := range v {
			walk(c, visit)
		}
	case []any:
		for _, c := range v {
			walk(c, visit)
		}
	}
}

// list returns v as a list of its own or of one, each as text: what a function
// in it yields as ${...}.
func list(v any) []string {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		var all []string
		for _, c := range v {
			all = append(all, list(c)...)
		}
		return all
	case object:
		for _, name := range []string{"Ref", "Fn::GetAtt"} {
			if target, ok := v[name].(string); ok {
				return []string{"${" + target + "}"}
			}
		}
		if sub, ok := v["Fn::Sub"].(string); ok {
			return []string{sub}
		}
	}
	return []string{fmt.Sprint(v)}
}

// one is list for a value that is no list.
func one(v any) string { return strings.Join(list(v), ", ") }

// normal returns v as JSON has it, without what is null or empty.
func normal(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var out any
	_ = json.Unmarshal(b, &out)
	walk(out, func(o object) { maps.DeleteFunc(o, func(_ string, v any) bool { return v == nil || v == "" }) })
	return out
}
