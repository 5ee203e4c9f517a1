package terms

import (
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// meaningless are the words of a GPU's name that say nothing of the model:
// brands, and what GPU feature discovery ("-SHARED") and GKE
// ("nvidia-h100-mega-80gb") put into the labels that people copy.
var meaningless = []string{"nvidia", "tesla", "shared", "mega"}

// MatchModel says whether a device is of the model that a person asked for.
// Names are compared by whole words, which are runs of letters and digits;
// case does not count. Every word of asked must be in fullName, but for brands
// and the like beside other words. A size such as "141gb" also matches a name
// without any size, if memoryTotalMiB, the device's memory in MiB, is within
// 10 % of it (in GB or GiB) or is 0, that is unknown. No word at all matches
// nothing.
func MatchModel(asked, fullName string, memoryTotalMiB float64) bool {
	if found, all := match(asked, fullName, memoryTotalMiB, true); found {
		return all
	}
	found, all := match(asked, fullName, memoryTotalMiB, false) // "tesla" alone
	return found && all
}

// HasWord says whether a model's name has a word that MatchModel can compare.
func HasWord(model string) bool {
	for range words(model) {
		return true
	}
	return false
}

// match compares the words of asked, all or only those with a meaning: are
// there any, and does the device have all of them?
func match(asked, fullName string, memoryTotalMiB float64, meaning bool) (found, all bool) {
	for word := range words(asked) {
		if meaning && slices.ContainsFunc(meaningless, func(m string) bool { return strings.EqualFold(m, word) }) {
			continue
		}
		found = true
		if !hasWord(fullName, word) && !sizeMatches(word, fullName, memoryTotalMiB) {
			return true, false
		}
	}
	return found, true
}

// words does not allocate: a decision over a fleet compares each device.
func words(name string) iter.Seq[string] {
	return strings.FieldsFuncSeq(name, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

func hasWord(name, word string) bool {
	for w := range words(name) {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

// sizeMatches: GKE says "nvidia-h200-141gb" where NVML says "NVIDIA H200". A
// name that has a size says which one is right.
func sizeMatches(word, fullName string, memoryTotalMiB float64) bool {
	size, ok := gigabytes(word)
	if !ok {
		return false
	}
	for w := range words(fullName) {
		if _, sized := gigabytes(w); sized {
			return false
		}
	}
	if !(memoryTotalMiB > 0) {
		return true
	}
	near := func(total float64) bool { return math.Abs(total-size) <= size/10 }
	return near(memoryTotalMiB/1024) || near(memoryTotalMiB*1024*1024/1e9)
}

// gigabytes reads a word like "80gb".
func gigabytes(word string) (size float64, ok bool) {
	const unit = "gb"
	n := len(word) - len(unit)
	if n < 1 || !strings.EqualFold(word[n:], unit) {
		return 0, false
	}
	for i := range n {
		if !isDigit(word[i]) {
			return 0, false
		}
	}
	size, err := strconv.ParseFloat(word[:n], 64)
	return size, err == nil
}
