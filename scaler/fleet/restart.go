package fleet

import "gpuscaler/scaler/window"

// complete fills the windows of a node whose scaler was restarted with what was received
// before. The node has not been published yet.
func (t *told) complete(n *Node) {
	if last := t.node.Load(); last != nil && last.Boot != n.Boot && n.Boot != 0 {
		t.before, t.restarted = last, n.Heard
		if n.Heard.Sub(last.Heard) > window.Longest {
			t.before = nil
		}
	}
	if t.before == nil || n.Completed {
		return
	}
	if n.Heard.Sub(t.restarted) > window.Longest {
		t.before = nil
		return
	}
	silent := t.restarted.Sub(t.before.Heard)
	for _, d := range n.Devices {
		if old := t.before.Device(d.ID); old != nil {
			d.means = d.means.Complete(old.means.Aged(silent))
		}
	}
	for uid, of := range n.young {
		was, is := t.before.Pod(uid), n.Pod(uid)
		if was == nil || is == nil || !was.Begin().Equal(is.Begin()) {
			continue // it became ready since: what was read before is of its loading
		}
		old := t.before.young[uid]
		for i := range of {
			if i < len(old) {
				of[i] = of[i].Complete(old[i].Aged(silent))
			}
		}
	}
}
