//! Who runs which ranks.

use std::ops::Range;

use crate::{error::LaunchError, hostfile::Host, select::Selection};

/// The hosts of a run, in the order of their ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// At least one, each with at least one slot.
    nodes: Vec<Node>,
}

/// A host and its ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What ssh is given.
    pub host: String,
    /// Numbers of its ranks in the world.
    pub ranks: Range<usize>,
    /// `CUDA_VISIBLE_DEVICES` of its ranks, where slots were chosen by number: its slots, with commas between.
    pub visible_devices: Option<String>,
}

impl Job {
    /// All of `hosts`, or the `num_nodes` first, with as many ranks as they have slots, or `num_gpus` each.
    ///
    /// # Errors
    ///
    /// Fewer hosts or slots than asked for.
    pub fn of_hosts(
        hosts: &[Host],
        num_nodes: Option<usize>,
        num_gpus: Option<usize>,
    ) -> Result<Self, LaunchError> {
        let asked = num_nodes.unwrap_or(hosts.len());
        let used =
            hosts.get(..asked).ok_or(LaunchError::TooFewHosts { asked, found: hosts.len() })?;
        let mut job = Self { nodes: Vec::new() };
        for host in used {
            let asked = num_gpus.unwrap_or(host.slots);
            if asked > host.slots {
                let (host, found) = (host.name.clone(), host.slots);
                return Err(LaunchError::TooFewSlots { asked, host, found });
            }
            job.push(&host.name, asked, None);
        }
        Ok(job)
    }

    /// What a selection leaves of `hosts`. Their ranks see the chosen devices only.
    ///
    /// # Errors
    ///
    /// As [`LaunchError`] says of selections.
    pub fn of_selection(hosts: &[Host], selection: Selection<'_>) -> Result<Self, LaunchError> {
        let mut job = Self { nodes: Vec::new() };
        for (host, slots) in selection.apply(hosts)? {
            let list: Vec<String> = slots.iter().map(ToString::to_string).collect();
            job.push(host, slots.len(), Some(list.join(",")));
        }
        Ok(job)
    }

    /// `num_nodes` hosts, at least 1, with `num_gpus` ranks each, at least 1, that nobody needs the names of.
    pub fn of_equal_nodes(num_nodes: usize, num_gpus: usize) -> Self {
        let mut job = Self { nodes: Vec::new() };
        for node in 0..num_nodes {
            job.push(&format!("node {node}"), num_gpus, None);
        }
        job
    }

    fn push(&mut self, host: &str, num_ranks: usize, visible_devices: Option<String>) {
        let first = self.world_size();
        let ranks = first..first + num_ranks;
        self.nodes.push(Node { host: host.to_owned(), ranks, visible_devices });
    }

    /// Ranks in all.
    pub fn world_size(&self) -> usize {
        self.nodes.last().map_or(0, |node| node.ranks.end)
    }

    /// All hosts, in the order of their ranks.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The host with number `node_rank`.
    ///
    /// # Errors
    ///
    /// [`LaunchError::NodeRank`] if there is none.
    pub fn node(&self, node_rank: usize) -> Result<&Node, LaunchError> {
        let num_nodes = self.nodes.len();
        self.nodes.get(node_rank).ok_or(LaunchError::NodeRank { found: node_rank, num_nodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<Host> {
        [("a", 2), ("b", 4), ("c", 1)]
            .map(|(name, slots)| Host { name: name.to_owned(), slots })
            .to_vec()
    }

    fn ranks(job: &Job) -> Vec<(&str, Range<usize>)> {
        job.nodes().iter().map(|node| (node.host.as_str(), node.ranks.clone())).collect()
    }

    #[test]
    fn ranks_are_counted_through_in_the_order_of_the_hosts() {
        let job = Job::of_hosts(&hosts(), None, None).unwrap();
        assert_eq!(ranks(&job), [("a", 0..2), ("b", 2..6), ("c", 6..7)]);
        assert_eq!(job.world_size(), 7);
        let job = Job::of_hosts(&hosts(), Some(2), Some(2)).unwrap();
        assert_eq!(ranks(&job), [("a", 0..2), ("b", 2..4)]);
        let job = Job::of_equal_nodes(2, 3);
        assert_eq!(ranks(&job), [("node 0", 0..3), ("node 1", 3..6)]);
    }

    #[test]
    fn chosen_slots_are_the_devices_that_ranks_see() {
        let job = Job::of_selection(&hosts(), Selection::Include("c@b:3,1")).unwrap();
        assert_eq!(ranks(&job), [("b", 0..2), ("c", 2..3)]);
        let devices = job.nodes().iter().map(|node| node.visible_devices.as_deref());
        assert_eq!(devices.collect::<Vec<_>>(), [Some("1,3"), Some("0")]);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let error = |num_nodes, num_gpus| {
            Job::of_hosts(&hosts(), num_nodes, num_gpus).unwrap_err().to_string()
        };
        assert_eq!(error(Some(4), None), "`--num_nodes` is `4`, but there are `3` hosts");
        assert_eq!(error(None, Some(2)), "`--num_gpus` is `2`, but `c` has `1` slots");
        assert_eq!(
            Job::of_equal_nodes(2, 1).node(2).unwrap_err().to_string(),
            "`--node_rank` is `2`, required: a number below `2`, the number of hosts"
        );
    }
}
