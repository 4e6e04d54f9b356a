//! The graph of references.

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::contents::Inventory;

/// Returns the strongly connected components of the reference graph, in topological order:
/// references come before their referrers. Nearly every component is a single path.
pub(crate) fn reference_groups(inventory: &Inventory) -> Vec<Vec<u32>> {
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
    let to_indices = |group: Vec<NodeIndex>| {
        group.into_iter().map(|node| node.index() as u32).collect::<Vec<u32>>()
    };
    groups.into_iter().map(to_indices).collect()
}

/// Visits a path and its references, recursively; does not follow the references of a path for
/// which `visit` returns false.
pub(crate) fn visit_reachable(
    inventory: &Inventory,
    from: u32,
    mut visit: impl FnMut(usize) -> bool,
) {
    let mut stack = vec![from];
    while let Some(path) = stack.pop() {
        if visit(path as usize) {
            stack.extend(&inventory.paths[path as usize].references);
        }
    }
}
