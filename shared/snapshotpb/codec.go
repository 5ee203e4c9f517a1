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
	"google.golang.org/protobuf/encoding/protojson"
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

// maxEmpty is how many empty frames in a row are skipped.
const maxEmpty = 64

// Read takes the next sample from r, skipping a few empty frames. io.EOF means that
// the stream ended between two frames. Any other error leaves r at no known
// place: the stream has to be given up.
//
// The bytes are not trusted: the length is checked before memory is taken, the
// number of devices before they are unpacked, and every field before it is
// returned.
func Read(r *bufio.Reader) (*snapshot.Sample, error) {
	for range maxEmpty {
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
	return nil, fmt.Errorf("more than %d empty messages in a row", maxEmpty)
}

func decode(frame []byte) (*snapshot.Sample, error) {
	if err := checkSize(frame); err != nil {
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

// Field numbers of sample.proto that checkSize counts.
const (
	fieldDevices, fieldAllocation                         = protowire.Number(5), protowire.Number(6)
	fieldValues, fieldCounters, fieldFailed, fieldProcess = protowire.Number(10), protowire.Number(11), protowire.Number(12), protowire.Number(14)
	fieldStates                                           = protowire.Number(16)
)

// checkSize counts the devices of a frame, and what each repeats, without
// unpacking them: an empty one takes two bytes on the wire and some two
// hundred in memory. So it does with containers and what they hold.
func checkSize(frame []byte) error {
	devices := 0
	var allocation allocationSize
	return eachField(frame, func(field protowire.Number, body []byte) error {
		switch field {
		case fieldAllocation:
			return allocation.add(body)
		case fieldDevices:
		default:
			return nil
		}
		if devices++; devices > snapshot.MaxDevices {
			return fmt.Errorf("more than %d devices", snapshot.MaxDevices)
		}
		var counts [fieldStates + 1]int
		return eachField(body, func(field protowire.Number, _ []byte) error {
			most := snapshot.MaxMetrics
			switch field {
			case fieldProcess:
				most = snapshot.MaxProcesses
			case fieldValues, fieldCounters, fieldFailed, fieldStates:
			default:
				return nil
			}
			if counts[field]++; counts[field] > most {
				return fmt.Errorf("device %d: more than %d of field %d", devices-1, most, field)
			}
			return nil
		})
	})
}

// eachField walks over the fields of a message; body is empty for those that
// are not length-delimited.
func eachField(message []byte, visit func(field protowire.Number, body []byte) error) error {
	for len(message) > 0 {
		field, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(field, kind, message[tag:])
		if size < 0 {
			return protowire.ParseError(size)
		}
		var body []byte
		if kind == protowire.BytesType {
			body, _ = protowire.ConsumeBytes(message[tag:])
		}
		if err := visit(field, body); err != nil {
			return err
		}
		message = message[tag+size:]
	}
	return nil
}

// JSON renders a sample for people. One that says that nothing could be read is
// an error with its reason.
func JSON(s *snapshot.Sample) ([]byte, error) {
	if s.Error != "" {
		return nil, errors.New(s.Error)
	}
	return protojson.MarshalOptions{Multiline: true}.Marshal(ToProto(s))
}

// ToProto shares the maps of s with the message.
func ToProto(s *snapshot.Sample) *Sample {
	m := &Sample{
		Writer:  s.Writer,
		Version: s.Version,
		Elapsed: durationpb.New(s.Elapsed),
		Error:   s.Error,
		Devices: make([]*Device, len(s.Devices)),

		Allocation: allocationToProto(s.Allocation),
		Refused:    uint32(s.Refused), //nolint:gosec // Validate bounds it
	}
	for i := range s.Devices {
		d := &s.Devices[i]
		m.Devices[i] = &Device{
			Id: d.ID, Vendor: d.Vendor, Model: d.Model,
			Index: uint32(d.Index), Parent: d.Parent, Instance: uint32(d.Instance), Profile: d.Profile, //nolint:gosec // Validate bounds both
			MemoryTotalMib: d.MemoryTotalMiB, MemoryReservedMib: d.MemoryReservedMiB,
			Values: d.Values, Counters: d.Counters, Failed: d.Failed, Error: d.Error, File: d.File, States: d.States,
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

		Allocation: allocationFromProto(m.GetAllocation()),
		Refused:    int(m.GetRefused()),
	}
	for i, d := range m.GetDevices() {
		s.Devices[i] = snapshot.Device{
			ID: d.GetId(), Vendor: d.GetVendor(), Model: d.GetModel(),
			Index: int(d.GetIndex()), Parent: d.GetParent(), Instance: int(d.GetInstance()), Profile: d.GetProfile(),
			MemoryTotalMiB: d.GetMemoryTotalMib(), MemoryReservedMiB: d.GetMemoryReservedMib(),
			Values: d.GetValues(), Counters: d.GetCounters(), Failed: d.GetFailed(), Error: d.GetError(), File: d.GetFile(), States: d.GetStates(),
		}
		for _, p := range d.GetProcesses() {
			s.Devices[i].Processes = append(s.Devices[i].Processes, snapshot.Process{PID: p.GetPid(), UsedMiB: p.GetUsedMib()})
		}
	}
	return s
}
