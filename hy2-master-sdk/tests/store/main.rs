//! The store: the same cases on SQLite and on PostgreSQL.
//!
//! PostgreSQL is `HY2_TEST_POSTGRES` (an address of a server where databases may be made), or one
//! that `scripts/test-postgres.sh` starts from Debian's package and that ends with this process.

mod backend;
mod cases;
mod crash;
mod lists;
mod schema;
mod search;

/// Makes one test per case and backend.
macro_rules! on_both {
    ($($module:ident :: $case:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $case() {
                let backend = crate::backend::Backend::sqlite().await;
                crate::$module::$case(&backend).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $case() {
                let backend = crate::backend::Backend::postgres().await;
                crate::$module::$case(&backend).await;
            })*
        }
    };
}

on_both!(
    cases::what_is_written_is_read_back,
    cases::a_taken_name_is_named_the_same_way,
    cases::a_deleted_user_frees_the_name_and_keeps_no_secret,
    cases::a_change_of_a_user_bumps_every_node_that_serves_and_marks_the_entry,
    cases::a_stale_revision_is_refused_and_changes_nothing,
    cases::a_token_is_used_once_by_a_hundred_at_once,
    cases::batches_count_once_in_every_order_and_number_of_deliveries,
    cases::concurrent_deliveries_of_a_batch_count_once,
    cases::rows_of_unknown_and_foreign_users_are_set_aside_and_do_not_block,
    cases::late_traffic_of_a_released_user_counts,
    cases::the_multiplier_bills_and_a_reset_never_takes_counters_back,
    cases::slices_never_exceed_the_quota_and_consumption_frees_nothing_twice,
    cases::a_released_slice_goes_back_but_what_was_used_stays_debited,
    cases::device_slots_are_fleet_wide,
    cases::time_and_traffic_change_users_and_bring_them_back,
    cases::silence_makes_a_node_suspect_then_offline_and_a_heartbeat_brings_it_back,
    cases::a_lease_has_one_holder_and_an_old_token_writes_nothing,
    cases::configurations_concern_their_nodes_and_going_back_is_going_on,
    cases::calls_arrive_after_the_commit_only,
    cases::averages_and_retention,
    cases::retention_goes_in_pieces_and_keeps_what_is_needed,
    lists::pages_of_every_order_hold_every_user_once_and_in_order,
    lists::searches_find_exactly_the_names_with_the_part,
    search::searches_equal_a_comparison_of_every_name,
    search::users_of_an_older_schema_are_found,
);
