package terms

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
)

// maxListed is how many of the allowed words a message lists: people may have
// a thousand profiles, and gRPC bounds what a status can carry.
const maxListed = 40

// Quote makes a text from outside fit for a message: quoted, printable, and
// cut after 64 bytes.
func Quote(text string) string {
	if len(text) <= maxShown {
		return strconv.Quote(text)
	}
	return strconv.Quote(text[:maxShown]) + "..."
}

// Name is a key as a message shows it: as it is when it is plain, else quoted.
func Name(key string) string {
	if key == "" || len(key) > maxShown {
		return Quote(key)
	}
	for i := range len(key) {
		c := key[i]
		if !isDigit(c) && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '.' && c != '_' && c != '-' {
			return Quote(key)
		}
	}
	return key
}

// IsLabel says whether a name is one that Kubernetes takes for a container (a
// DNS-1123 label): 1 to 63 lower-case letters, digits and dashes, not beginning
// or ending with a dash.
func IsLabel(name string) bool {
	if name == "" || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && !isDigit(c) && c != '-' {
			return false
		}
	}
	return true
}

// LabelAllowed is what IsLabel allows, for messages.
const LabelAllowed = "allowed are 1 to 63 lower-case letters, digits and dashes, not beginning or ending with a dash"

// UnknownWord says that word is none of allowed, proposes the nearest one and
// lists them at its end.
func UnknownWord(word string, allowed []string) error {
	list := "allowed are " + List(allowed)
	if word == "" {
		return fmt.Errorf(`"" is empty; %s`, list)
	}
	return fmt.Errorf("%s is unknown; %s%s", Quote(word), didYouMean(word, "", allowed), list)
}

// UnknownKey says that a key is none of allowed, proposes the nearest one and
// lists them. suffix is what was cut off the key before it was looked up.
func UnknownKey(key, suffix string, allowed []string) error {
	return fmt.Errorf("unknown key; %sallowed are %s", didYouMean(key, suffix, allowed), List(allowed))
}

func didYouMean(word, suffix string, candidates []string) string {
	near := Nearest(word, candidates)
	if near == "" {
		return ""
	}
	return "did you mean " + Quote(near+suffix) + "? "
}

// List joins words for a message and cuts a very long list.
func List(words []string) string {
	if len(words) <= maxListed {
		return strings.Join(words, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words[:maxListed], ", "), len(words)-maxListed)
}

// Nearest is the candidate that word is probably a misspelling of: at most two
// edits away, or a third of its length; else one that begins as word does or
// that word begins with. "" when there is none. Case does not count.
func Nearest(word string, candidates []string) string {
	if word == "" || len(word) > maxShown {
		return "" // also bounds the work that a hostile text can cause
	}
	lower := strings.ToLower(word)
	limit := max(2, len(word)/3)
	best, bestDistance := "", limit+1
	for _, c := range candidates {
		// Two edits turn "mean" into "min": a short word needs a closer match.
		d := levenshtein.ComputeDistance(lower, strings.ToLower(c))
		if d < bestDistance && 2*d < len(c) {
			best, bestDistance = c, d
		}
	}
	if best != "" {
		return best
	}
	for _, c := range candidates {
		lc := strings.ToLower(c)
		if len(word) >= 3 && strings.HasPrefix(lc, lower) || len(c) >= 3 && strings.HasPrefix(lower, lc) {
			return c
		}
	}
	return ""
}
