package peer

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	pb "gpuscaler/scaler/peer/peerpb"
)

// A scaler that was stopped while a stream began works off messages of different delays:
// a node that was fresh stays so while newer messages come in.
func TestFreshStaysFresh(t *testing.T) {
	d := decoder{}
	resumed := time.Now()
	layout := &pb.Layout{Node: "a"}
	var last time.Time
	for i, delay := range []time.Duration{3 * time.Second, 2 * time.Second, time.Second, 0, 0, 0} {
		sent := resumed.Add(time.Duration(i-3) * time.Second)
		n, err := d.decode(&pb.State{Layout: layout, ElapsedUs: int64(i) * 1e6, HeardAgeUs: new(int64(0))}, sent.Add(delay))
		require.NoError(t, err)
		assert.False(t, n.Heard.Before(last), "message %d", i)
		assert.False(t, n.Heard.After(sent.Add(delay)), "message %d", i)
		last, layout = n.Heard, nil
	}
	assert.Equal(t, resumed.Add(2*time.Second), last, "and is dated right in the end")
}
