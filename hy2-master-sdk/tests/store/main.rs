//! The store: the same cases on SQLite and on PostgreSQL.
//!
//! PostgreSQL is `HY2_TEST_POSTGRES` (an address of a server where databases may be made), or one
//! that `scripts/test-postgres.sh` starts from Debian's package and that ends with this process.

mod accounting;
mod alerts;
mod backend;
mod crash;
mod lists;
mod nodes;
mod pools;
mod quotas;
mod regions;
mod rows;
mod schema;
mod search;
mod upkeep;
mod users;
mod webhooks;

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
    nodes::what_is_written_is_read_back,
    users::a_taken_name_is_named_the_same_way,
    users::a_deleted_user_frees_the_name_and_keeps_no_secret,
    users::a_change_of_a_user_bumps_every_node_that_serves_and_marks_the_entry,
    users::a_stale_revision_is_refused_and_changes_nothing,
    nodes::a_token_is_used_once_by_a_hundred_at_once,
    accounting::batches_count_once_in_every_order_and_number_of_deliveries,
    accounting::concurrent_deliveries_of_a_batch_count_once,
    accounting::rows_of_unknown_and_foreign_users_are_set_aside_and_do_not_block,
    accounting::a_node_that_reports_what_cannot_be_stops_nobodys_accounts,
    accounting::late_traffic_of_a_released_user_counts,
    accounting::the_multiplier_bills_and_a_reset_never_takes_counters_back,
    quotas::slices_never_exceed_the_quota_and_consumption_frees_nothing_twice,
    quotas::a_released_slice_goes_back_but_what_was_used_stays_debited,
    quotas::a_slice_that_a_node_never_heard_of_is_granted_again,
    quotas::a_slice_in_hand_goes_on_when_its_time_is_over,
    quotas::a_revoked_node_owes_nothing,
    quotas::a_rest_that_moves_no_byte_is_none_and_rounding_leaves_none,
    quotas::what_was_used_of_a_slice_may_be_said_twice,
    quotas::what_users_left_on_a_node_that_they_are_not_on_is_known,
    quotas::what_is_lent_and_what_passed_keep_their_multiplier,
    quotas::what_was_lent_before_a_restore_ends_when_the_node_is_back,
    quotas::device_slots_are_fleet_wide,
    quotas::device_slots_of_nodes_that_serve_the_user_no_more_are_free,
    users::time_and_traffic_change_users_and_bring_them_back,
    users::what_time_and_traffic_do_is_told_once_to_whose_users_they_are,
    users::what_is_rolled_back_is_not_told_and_many_are_told_at_once,
    webhooks::each_webhook_gives_its_share_and_what_is_taken_is_taken_once,
    webhooks::nothing_is_planned_for_a_webhook_that_is_not_what_it_was,
    webhooks::what_nobody_takes_is_given_up_and_told_once_for_each_webhook,
    webhooks::deliveries_of_an_older_schema_are_tried_for_their_day,
    users::a_plan_that_ends_is_followed_by_the_next_without_a_gap,
    users::a_hold_begins_when_the_user_was_seen_and_its_period_with_it,
    users::a_hold_with_an_end_of_its_own_ends,
    users::a_period_of_a_clock_that_was_ahead_begins_now_and_gives_nothing,
    accounting::days_answer_what_hours_are_kept_no_more_for,
    pools::who_was_taken_off_a_node_stays_off_until_somebody_assigns_it,
    nodes::silence_makes_a_node_suspect_then_offline_and_a_heartbeat_brings_it_back,
    upkeep::a_lease_has_one_holder_and_an_old_token_writes_nothing,
    nodes::configurations_concern_their_nodes_and_going_back_is_going_on,
    upkeep::a_transaction_whose_beginning_is_given_up_is_not_left_open,
    upkeep::calls_arrive_after_the_commit_only,
    upkeep::averages_and_retention,
    upkeep::a_clock_that_is_ahead_for_a_while_deletes_no_years,
    upkeep::retention_goes_in_pieces_and_keeps_what_is_needed,
    pools::who_is_kept_to_pools_is_short_of_nodes_of_these_only,
    pools::nodes_that_are_taken_out_leave_their_users_short_of_nodes,
    pools::an_alert_is_open_once_and_news_when_it_gets_worse,
    alerts::an_alert_is_told_when_it_is_news_and_when_it_is_over,
    alerts::a_node_has_so_many_alerts_open_and_no_more,
    alerts::alerts_are_listed_in_pages_and_kept_for_a_while,
    regions::a_region_is_read_back_as_it_was_written_and_its_code_is_taken,
    regions::a_region_stays_while_something_uses_it_and_what_is_over_forgets_it,
    lists::pages_of_every_order_hold_every_user_once_and_in_order,
    lists::searches_find_exactly_the_names_with_the_part,
    search::searches_equal_a_comparison_of_every_name,
    search::users_of_an_older_schema_are_found,
);
