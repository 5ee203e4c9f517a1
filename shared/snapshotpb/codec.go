// Package snapshotpb is the wire form of a snapshot.Sample: the .proto, its
// generated code, and the framed codec between the two. Nothing else: who
// writes, who reads and what becomes of a sample is not known here.
package snapshotpb

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"gpuscaler/shared/snapshot"
)

// MaxFrame is the largest message accepted, in bytes without its length
// prefix. A node of 8 GPUs with 7 MIG instances each needs some 40 KiB.
const MaxFrame = 256 << 10

// Write sends s as one frame. It fails without writing anything if s would be
// rejected by Read.
func Write(w io.Writer, s *snapshot.Sample) error {
	if err := s.Validate(); err != nil {
		return err
	}
	m := ToProto(s)
	if n := proto.Size(m); n > MaxFrame {
		return fmt.Errorf("message of %d bytes, at most %d are allowed", n, MaxFrame)
	}
	_, err := protodelim.MarshalTo(w, m)
	return err
}

// Read takes the next sample from r, skipping empty frames. io.EOF means that
// the stream ended between two frames. Any other error leaves r at no known
// place: the stream has to be given up.
//
// The bytes are not trusted: the length is checked before memory is taken, the
// number of devices before they are unpacked, and every field before it is
// returned.
func Read(r *bufio.Reader) (*snapshot.Sample, error) {
	for {
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, err
		}
		if size > MaxFrame {
			return nil, fmt.Errorf("message of %d bytes, at most %d are allowed", size, MaxFrame)
		}
		if size == 0 {
			continue
		}
		frame := make([]byte, size)
		if _, err := io.ReadFull(r, frame); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		return decode(frame)
	}
}

func decode(frame []byte) (*snapshot.Sample, error) {
	if err := checkDevices(frame); err != nil {
		return nil, err
	}
	var m Sample
	if err := proto.Unmarshal(frame, &m); err != nil {
		return nil, err
	}
	if m.Elapsed != nil {
		if err := m.Elapsed.CheckValid(); err != nil {
			return nil, err
		}
	}
	s := FromProto(&m)
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// checkDevices counts the devices of a frame without unpacking them: an empty
// one takes two bytes on the wire and some two hundred in memory.
func checkDevices(frame []byte) error {
	const devices = protowire.Number(5)
	n := 0
	for len(frame) > 0 {
		num, _, size := protowire.ConsumeField(frame)
		if size < 0 {
			return protowire.ParseError(size)
		}
		if num == devices {
			n++
		}
		frame = frame[size:]
	}
	if n > snapshot.MaxDevices {
		return fmt.Errorf("%d devices, at most %d are allowed", n, snapshot.MaxDevices)
	}
	return nil
}

// ToProto shares the maps of s with the message.
func ToProto(s *snapshot.Sample) *Sample {
	m := &Sample{
		Writer:  s.Writer,
		Version: s.Version,
		Elapsed: durationpb.New(s.Elapsed),
		Error:   s.Error,
		Devices: make([]*Device, len(s.Devices)),
	}
	for i := range s.Devices {
		d := &s.Devices[i]
		m.Devices[i] = &Device{
			Id: d.ID, Vendor: d.Vendor, Model: d.Model,
			Index: uint32(d.Index), Parent: d.Parent, Instance: uint32(d.Instance), Profile: d.Profile, //nolint:gosec // Validate bounds Index, NVML bounds Instance
			MemoryTotalMib: d.MemoryTotalMiB, MemoryReservedMib: d.MemoryReservedMiB,
			Values: d.Values, Counters: d.Counters, Failed: d.Failed, Error: d.Error,
		}
		for _, p := range d.Processes {
			m.Devices[i].Processes = append(m.Devices[i].Processes, &Process{Pid: p.PID, UsedMib: p.UsedMiB})
		}
	}
	return m
}

// FromProto shares the maps of m with the sample. It does not validate.
func FromProto(m *Sample) *snapshot.Sample {
	s := &snapshot.Sample{
		Writer:  m.GetWriter(),
		Version: m.GetVersion(),
		Elapsed: m.GetElapsed().AsDuration(),
		Error:   m.GetError(),
		Devices: make([]snapshot.Device, len(m.GetDevices())),
	}
	for i, d := range m.GetDevices() {
		s.Devices[i] = snapshot.Device{
			ID: d.GetId(), Vendor: d.GetVendor(), Model: d.GetModel(),
			Index: int(d.GetIndex()), Parent: d.GetParent(), Instance: int(d.GetInstance()), Profile: d.GetProfile(),
			MemoryTotalMiB: d.GetMemoryTotalMib(), MemoryReservedMiB: d.GetMemoryReservedMib(),
			Values: d.GetValues(), Counters: d.GetCounters(), Failed: d.GetFailed(), Error: d.GetError(),
		}
		for _, p := range d.GetProcesses() {
			s.Devices[i].Processes = append(s.Devices[i].Processes, snapshot.Process{PID: p.GetPid(), UsedMiB: p.GetUsedMib()})
		}
	}
	return s
}
