//! The list of nodes: filtered, by key.

use super::nodes::{NodeRow, node_columns};
use super::{Store, StoreError, on};
use crate::domain::{NodeId, ObservedState};

/// Which nodes.
#[derive(Debug, Clone, Default)]
pub struct NodeFilter {
    /// Only in this state.
    pub observed_state: Option<ObservedState>,
    /// Only with this in the name, in any case.
    pub search: Option<String>,
}

/// Lists nodes after `after` in order of their numbers.
///
/// # Errors
///
/// The database refuses.
pub async fn list(
    store: &Store,
    filter: &NodeFilter,
    after: Option<NodeId>,
    limit: u32,
) -> Result<Vec<NodeRow>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        node_columns!(),
        " from vps_nodes where id > $1 and ($2 is null or observed_state = $2) \
         and ($3 is null or lower(name) like $3 escape '\\') order by id limit $4"
    );
    let search = filter.search.as_deref().map(pattern);
    Ok(on!(read store, |ex| sqlx::query_as(SQL)
        .bind(after.unwrap_or(NodeId(0)))
        .bind(filter.observed_state)
        .bind(&search)
        .bind(i64::from(limit))
        .fetch_all(ex)
        .await)?)
}

/// Makes a pattern of a text in which nothing is special.
fn pattern(search: &str) -> String {
    let mut pattern = String::from("%");
    for letter in search.to_lowercase().chars() {
        if matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    pattern
}

#[cfg(test)]
mod tests {
    use super::pattern;

    #[test]
    fn wildcards_in_a_search_are_letters() {
        assert_eq!(pattern("a_b%C\\"), "%a\\_b\\%c\\\\%");
    }
}
