//! The replicated member table and the cluster version.
//!
//! Owned by the state machine on the sequencer's core.

use std::collections::BTreeMap;

use crate::types::MemberId;

/// One member, as MemberList shows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    /// Empty until the member has started.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    pub client_urls: Vec<String>,
    /// Whether it has no vote.
    pub learner: bool,
}

/// All members, by id.
#[derive(Clone, Default, Debug)]
pub struct Members {
    members: BTreeMap<MemberId, Member>,
    /// `major.minor.patch`; `None` until the first leader has set it.
    pub cluster_version: Option<String>,
}

impl Members {
    /// Adds a member or replaces it whole.
    pub fn insert(&mut self, id: MemberId, member: Member) {
        self.members.insert(id, member);
    }

    /// A member has started: its name and client URLs.
    pub fn set_attributes(&mut self, id: MemberId, name: &str, client_urls: Vec<String>) {
        if let Some(member) = self.members.get_mut(&id) {
            name.clone_into(&mut member.name);
            member.client_urls = client_urls;
        }
    }

    /// In order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        self.members.iter().map(|(id, m)| (*id, m))
    }
}
