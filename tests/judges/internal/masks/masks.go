// Package masks says what two correct servers may answer differently. Everything else must be equal.
// This table is the only place for it: every judge that compares answers goes through here.
package masks

import (
	"bytes"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Fields of protobuf answers, by full name.
var fields = Rules{
	// Drawn from the peer URL and the cluster token; raft's own counters.
	"etcdserverpb.ResponseHeader.cluster_id": clearField,
	"etcdserverpb.ResponseHeader.member_id":  clearField,
	"etcdserverpb.ResponseHeader.raft_term":  clearField,
	"etcdserverpb.StatusResponse.leader":     clearField,
	"etcdserverpb.StatusResponse.raftIndex":  clearField,
	"etcdserverpb.StatusResponse.raftTerm":   clearField,
	"etcdserverpb.AlarmMember.memberID":      clearField,
	"etcdserverpb.Member.ID":                 clearField,
	"etcdserverpb.Member.peerURLs":           clearField,
	"etcdserverpb.Member.clientURLs":         clearField,

	"etcdserverpb.StatusResponse.raftAppliedIndex": clearField,

	// Each storage engine has its own size.
	"etcdserverpb.StatusResponse.dbSize":      clearField,
	"etcdserverpb.StatusResponse.dbSizeInUse": clearField,

	// Read out of a Go map, and ordered by expiry with sub-second ties.
	"etcdserverpb.LeaseTimeToLiveResponse.keys": sortKeys,
	"etcdserverpb.LeaseLeasesResponse.leases":   sortLeases,
}

// Fields of remaining seconds: two answers TTLSlack seconds apart are equal.
var clocks = []protoreflect.FullName{
	"etcdserverpb.LeaseTimeToLiveResponse.TTL",
}

// TTLSlack is in seconds: the two servers count a lease down by their own clocks.
const TTLSlack = 2

// Fields that hold a lease id, in requests and answers: ids the server chose are translated.
var leaseFields = []protoreflect.FullName{
	"mvccpb.KeyValue.lease",
	"etcdserverpb.PutRequest.lease",
	"etcdserverpb.Compare.lease",
	"etcdserverpb.LeaseGrantResponse.ID",
	"etcdserverpb.LeaseRevokeRequest.ID",
	"etcdserverpb.LeaseKeepAliveRequest.ID",
	"etcdserverpb.LeaseKeepAliveResponse.ID",
	"etcdserverpb.LeaseTimeToLiveRequest.ID",
	"etcdserverpb.LeaseTimeToLiveResponse.ID",
	"etcdserverpb.LeaseStatus.ID",
}

// Parts of etcdctl's output, applied in this order.
var texts = []textRule{
	// JSON and "fields" forms of the fields above.
	{`("(?:raft_term|leader|raftIndex|raftTerm|raftAppliedIndex|dbSize|dbSizeInUse)":)\d+`, "${1}_"},
	{`("(?:RaftTerm|RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse)" : )\d+`, "${1}_"},
	// endpoint status: sizes and the share in use, then term and indices after the two flags.
	{`(3\.7\.0[,│ ]+)[\d.]+ [kMG]?B([,│ ]+)[\d.]+ [kMG]?B([,│ ]+)\d+%`, "${1}_${2}_${3}_"},
	{`((?:true|false)[,│ ]+(?:true|false)[,│ ]+)\d+([,│ ]+)\d+([,│ ]+)\d+`, "${1}_${2}_${3}_"},
	// The width of a table's columns follows what is masked in them.
	{`─+`, "─"},
	{` +`, " "},
	// Lease ids chosen by the server, also as the end of a session's key.
	{`(lease )[0-9a-f]+( granted)`, "${1}_${2}"},
	{`("ID"\s?:\s?)\d+`, "${1}_"},
	{`((?:mutex|race)/)[0-9a-f]+`, "${1}_"},
	// Durations and clocks.
	{`(took(?:"?:"| = ))[\d.]+[µmn]?s`, "${1}_"},
	{`(took )[\d.]+[µmn]?s`, "${1}_"},
	{`("ts":)"[^"]*"`, "${1}_"},
	{`("(?:ttl|TTL)"\s?:\s?)\d+`, "${1}_"},
	{`(remaining\()\d+(s\))`, "${1}_${2}"},
	// etcdctl's own side of the connection in its warnings.
	{`(etcd-endpoints://)0x[0-9a-f]+`, "${1}_"},
	{`(LocalAddr: '127\.0\.0\.1:)\d+`, "${1}_"},
}

// textRule replaces what a pattern matches.
type textRule struct{ pattern, with string }

func clearField(m protoreflect.Message, f protoreflect.FieldDescriptor) { m.Clear(f) }

func sortKeys(m protoreflect.Message, _ protoreflect.FieldDescriptor) {
	slices.SortFunc(m.Interface().(*pb.LeaseTimeToLiveResponse).Keys, bytes.Compare)
}

func sortLeases(m protoreflect.Message, _ protoreflect.FieldDescriptor) {
	slices.SortFunc(m.Interface().(*pb.LeaseLeasesResponse).Leases, func(a, b *pb.LeaseStatus) int {
		return int(min(1, max(-1, a.ID-b.ID)))
	})
}
