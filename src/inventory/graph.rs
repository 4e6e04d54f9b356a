//! The graph of references.

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::contents::Inventory;

/// The paths in groups that refer to each other, nearly always of one path; references come first.
pub(crate) fn groups(inventory: &Inventory) -> Vec<Vec<u32>> {
    let mut graph = DiGraph::<(), (), u32>::with_capacity(inventory.paths.len(), 0);
    for _ in &inventory.paths {
        graph.add_node(());
    }
    for (from, path) in inventory.paths.iter().enumerate() {
        for &to in &path.references {
            graph.add_edge(NodeIndex::new(from), NodeIndex::new(to as usize), ());
        }
    }
    let groups = kosaraju_scc(&graph);
    drop(graph);
    let numbers = |group: Vec<NodeIndex>| {
        group.into_iter().map(|node| node.index() as u32).collect::<Vec<u32>>()
    };
    groups.into_iter().map(numbers).collect()
}

/// Visits a path and its references, recursively; does not follow the references of a path for
/// which `visit` returns false.
pub(crate) fn reach(inventory: &Inventory, from: u32, mut visit: impl FnMut(usize) -> bool) {
    let mut stack = vec![from];
    while let Some(path) = stack.pop() {
        if visit(path as usize) {
            stack.extend(&inventory.paths[path as usize].references);
        }
    }
}
