//! Dominators on the value graph.
//!
//! One tree serves all parameters: a node's immediate dominator depends only on the
//! nodes before it. The common dominators of several sinks are the ancestors of
//! their lowest common ancestor. Jump pointers make that logarithmic.

use super::graph::{Graph, NodeId, NodeMap};

/// A node's place in the tree; the virtual source is `None`.
#[derive(Debug, Clone, Copy)]
struct Place {
    parent: Option<NodeId>,
    jump: Option<NodeId>,
    depth: u32,
}

/// The dominator tree of the nodes that a virtual source reaches.
#[derive(Debug)]
pub(super) struct DominatorTree {
    places: NodeMap<Option<Place>>,
}

impl DominatorTree {
    /// Builds the tree over nodes for which `admitted` says yes, from the nodes in `seeds`, along data operands.
    pub(super) fn new(graph: &Graph<'_>, seeds: &NodeMap<bool>, admitted: impl Fn(NodeId) -> bool) -> Self {
        let mut tree = Self { places: NodeMap::new(graph, None) };
        for id in graph.ids().filter(|&id| admitted(id)) {
            let mut before = graph.flow_deps(id).iter().copied().filter(|&d| tree.contains(d));
            // `None` stands for the virtual source.
            let parent = if seeds[id] {
                None
            } else {
                let Some(first) = before.next() else { continue };
                before.try_fold(first, |a, b| tree.common(Some(a), Some(b)))
            };
            let place = tree.place_under(parent);
            tree.places[id] = Some(place);
        }
        tree
    }

    pub(super) fn contains(&self, id: NodeId) -> bool {
        self.places[id].is_some()
    }

    fn place(&self, id: Option<NodeId>) -> Option<Place> {
        id.and_then(|id| self.places[id])
    }

    fn depth(&self, id: Option<NodeId>) -> u32 {
        self.place(id).map_or(0, |p| p.depth)
    }

    fn place_under(&self, parent: Option<NodeId>) -> Place {
        let up = self.place(parent);
        let jump = up.and_then(|p| p.jump);
        let over = self.place(jump).and_then(|p| p.jump);
        let balanced = self.depth(parent) - self.depth(jump) == self.depth(jump).saturating_sub(self.depth(over));
        let jump = if up.is_some() && balanced { over } else { parent };
        Place { parent, jump, depth: self.depth(parent) + 1 }
    }

    /// The lowest node that dominates both; `None` is the virtual source.
    pub(super) fn common(&self, mut a: Option<NodeId>, mut b: Option<NodeId>) -> Option<NodeId> {
        if self.depth(a) < self.depth(b) {
            std::mem::swap(&mut a, &mut b);
        }
        while self.depth(a) > self.depth(b) {
            let place = self.place(a)?;
            a = if self.depth(place.jump) >= self.depth(b) { place.jump } else { place.parent };
        }
        while a != b {
            let (x, y) = (self.place(a)?, self.place(b)?);
            (a, b) = if x.jump == y.jump { (x.parent, y.parent) } else { (x.jump, y.jump) };
        }
        a
    }

    /// The node and its dominators, nearest first.
    pub(super) fn chain(&self, from: Option<NodeId>) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::successors(from, |&id| self.places[id].and_then(|p| p.parent))
    }
}
