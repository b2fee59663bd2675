// Reads JSON strings from standard input, each the text of a Modelfile, and prints for each one line of
// JSON: what Ollama's own parser makes of it, or its error.
package main

import (
	"encoding/json"
	"io"
	"os"
	"strings"

	"github.com/ollama/ollama/parser"
)

type result struct {
	Commands []parser.Command
	Error    string
}

func parse(text string) result {
	file, err := parser.ParseFile(strings.NewReader(text))
	if err != nil {
		return result{Error: err.Error()}
	}
	return result{Commands: file.Commands}
}

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var text string
		if err := in.Decode(&text); err == io.EOF {
			return
		} else if err != nil {
			panic(err)
		}
		if err := out.Encode(parse(text)); err != nil {
			panic(err)
		}
	}
}
