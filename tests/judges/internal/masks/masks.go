// Package masks says what two correct servers may answer differently. Everything else must be equal.
// This table is the only place for it: every judge that compares answers goes through here.
package masks

import (
	"bytes"
	"regexp"
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

// Parts of etcdctl's output. A pattern's first group stays, the rest becomes "_".
var texts = []textRule{
	// JSON, "fields" and table forms of the fields above.
	{regexp.MustCompile(`("(?:cluster_id|member_id|raft_term|leader|raftIndex|raftTerm|raftAppliedIndex|` +
		`dbSize|dbSizeInUse|memberID)":)\d+`)},
	{regexp.MustCompile(`("(?:ClusterID|MemberID|RaftTerm|Leader|RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse|` +
		`MemberID)" : )\d+`)},
}

type textRule struct{ pattern *regexp.Regexp }

func clearField(m protoreflect.Message, f protoreflect.FieldDescriptor) { m.Clear(f) }

func sortKeys(m protoreflect.Message, _ protoreflect.FieldDescriptor) {
	slices.SortFunc(m.Interface().(*pb.LeaseTimeToLiveResponse).Keys, bytes.Compare)
}

func sortLeases(m protoreflect.Message, _ protoreflect.FieldDescriptor) {
	slices.SortFunc(m.Interface().(*pb.LeaseLeasesResponse).Leases, func(a, b *pb.LeaseStatus) int {
		return int(min(1, max(-1, a.ID-b.ID)))
	})
}
