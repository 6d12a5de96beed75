//! What spothop promises, on real hosts: two machines with systemd, Docker and spothop, and a client, on one network.
//!
//! All scenarios share one testbed, which is made when the first of them needs it and goes away after the last, however that
//! ended; the one that takes the power from a host has its own. They run one after another: two at a time would measure each
//! other. `cargo test -p spothop-tests --features e2e --test scenarios -- NAME` runs some of them.

#[path = "../common/mod.rs"]
mod common;

mod capacity;
mod clouds;
mod configured;
mod doctor;
mod engine;
mod faults;
mod fence;
mod files;
mod inventory;
mod mass;
mod matrix;
mod memory;
mod network;
mod notices;
mod parking;
mod post_copy;
mod prediction;
mod processes;
mod provider;
mod redis;
mod refusals;
mod rounds;
mod scaling;
mod scene;
mod targets;
mod webhook;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};

use self::scene::Scene;

/// The testbed of all scenarios. A static is never dropped: `main` takes it out at the end.
static SHARED: Mutex<Option<Scene>> = Mutex::new(None);

/// Trials named after functions that take a [`Scene`].
macro_rules! scenarios {
    ($($module:ident :: $name:ident,)*) => {
        vec![$(trial(concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = scenarios![
        doctor::every_kind_of_leftover_is_found_and_its_command_removes_it,
        doctor::a_migration_leaves_nothing_for_doctor_to_find,
        redis::a_notice_moves_redis_under_load_with_its_connection_and_every_acknowledged_write,
        redis::a_connection_lives_through_a_move_and_the_move_back,
        redis::a_moved_container_that_is_restarted_starts_in_the_ordinary_way,
        redis::the_restart_policy_acts_again_after_the_move,
        capacity::what_has_no_room_anywhere_goes_to_an_instance_that_is_launched_for_it_within_the_fleets_budget,
        clouds::googles_preemption_moves_redis_with_its_connection,
        clouds::maintenance_that_google_plans_moves_redis_when_it_is_near_and_no_sooner,
        clouds::azures_preemption_moves_redis_with_its_connection_and_is_approved_when_that_runs,
        clouds::alibabas_termination_time_moves_redis_with_its_connection,
        clouds::tencents_termination_time_moves_redis_with_its_connection,
        clouds::a_machine_that_is_powered_off_waits_until_its_containers_are_gone,
        engine::the_container_is_the_same_to_the_engine_and_never_restarted_at_the_source,
        engine::logs_exec_and_stop_work_after_the_move,
        engine::a_terminal_lives_on,
        engine::containers_with_an_init_a_read_only_root_or_a_command_under_way_move,
        engine::an_image_that_the_target_lacks_is_shipped,
        engine::an_image_of_the_same_name_at_the_target_is_not_taken_for_the_container_s,
        engine::a_notice_moves_all_containers_in_the_order_of_their_priority,
        files::the_writable_layer_and_all_volumes_are_the_same_after_the_move,
        files::changes_up_to_the_freeze_are_not_lost,
        memory::every_way_of_memory_keeps_the_connection_and_every_acknowledged_write,
        memory::a_container_that_is_still_being_filled_moves_on_only_when_it_is_whole,
        memory::memory_of_every_kind_is_the_same_after_the_move_in_all_processes,
        prediction::predictions_come_nearer_to_the_truth_with_every_move_and_outlive_the_daemon,
        rounds::a_sooner_deadline_that_arrives_under_way_cuts_the_rounds_short,
        rounds::a_deadline_that_is_near_cuts_the_rounds_short_and_the_container_is_moved_before_it,
        post_copy::a_container_that_writes_faster_than_the_link_runs_before_all_of_its_memory_is_there,
        post_copy::after_an_abort_of_a_move_whose_memory_was_to_follow_it_goes_another_way,
        post_copy::a_daemon_that_dies_while_memory_follows_delays_it_and_loses_nothing,
        post_copy::what_dies_of_a_pager_while_memory_follows_leaves_a_whole_container_or_one_that_starts_anew,
        post_copy::a_source_that_is_lost_while_memory_follows_takes_it_along_and_the_container_starts_anew,
        processes::a_pipe_between_two_processes_loses_and_doubles_nothing,
        processes::children_that_share_their_parents_memory_all_have_it_after_the_move,
        processes::kernel_objects_of_all_kinds_are_the_same_after_the_move,
        network::streams_in_full_flow_lose_no_byte_in_either_direction,
        network::a_listener_on_the_hosts_network_lives_on_at_the_other_host,
        network::a_published_port_lives_on_at_the_new_address_and_old_connections_are_reset,
        notices::what_is_only_likely_prepares_the_target_and_moves_nothing,
        notices::what_is_only_likely_moves_containers_where_it_shall_but_none_that_came_just_now,
        notices::a_scheduled_maintenance_moves_containers_before_it_begins,
        notices::a_notice_that_is_withdrawn_stops_what_is_not_frozen_and_the_container_runs_on,
        notices::several_notices_are_one_evacuation,
        notices::a_container_without_a_target_is_moved_when_a_host_appears_before_the_deadline,
        notices::a_message_in_a_queue_evacuates_the_host_that_it_is_about_and_no_other,
        webhook::a_service_that_signs_repeats_and_is_imitated_evacuates_the_host_once_and_hears_of_it,
        parking::a_redis_is_parked_in_a_bucket_and_restored_by_another_host_after_its_own_has_lost_its_power,
        parking::what_was_not_given_away_is_restored_on_somebodys_word_alone_and_runs_once_if_that_was_wrong,
        parking::memory_is_parked_in_rounds_at_once_or_by_criu_as_it_is_configured,
        parking::files_and_volumes_are_the_same_after_a_stay_in_a_directory,
        parking::a_store_that_is_full_leaves_the_container_where_it_was,
        parking::a_failure_after_the_manifest_leaves_the_container_where_it_was_and_nothing_to_restore,
        parking::a_restore_that_fails_gives_the_checkpoint_back,
        parking::what_no_host_takes_is_parked_before_a_notices_deadline,
        scaling::a_group_does_not_wait_for_what_can_never_be_moved,
        scaling::a_group_waits_for_a_host_until_its_last_container_is_safe_and_no_longer,
        provider::a_host_tells_what_kind_of_machine_it_is_and_what_it_costs,
        provider::doctor_tells_what_the_cloud_says_of_the_host,
        refusals::what_cannot_be_moved_is_shown_with_its_reason_before_any_notice,
        refusals::a_bind_mount_moves_when_its_label_says_that_it_is_shared,
        targets::a_target_without_memory_refuses_with_figures,
        targets::a_certificate_of_another_authority_is_named_as_the_reason,
        targets::a_certificate_of_another_host_is_named_as_the_reason,
        targets::a_certificate_is_rotated_without_a_restart,
        targets::a_host_that_is_not_in_the_inventory_is_refused_and_named_in_the_log,
        targets::a_name_that_is_taken_at_the_target_is_left_alone,
        targets::a_host_that_is_about_to_be_maintained_accepts_nothing,
        targets::a_target_that_is_taken_away_itself_gives_back_what_is_not_frozen,
        faults::a_failure_at_the_source_after_the_transfer_leaves_the_container_where_it_was,
        faults::a_failure_at_the_source_after_the_restore_leaves_the_container_where_it_was,
        faults::a_failure_at_the_target_after_the_restore_leaves_the_container_where_it_was,
        faults::a_target_daemon_killed_before_commit_leaves_the_container_where_it_was,
        faults::a_source_daemon_killed_before_commit_leaves_the_container_where_it_was,
        faults::a_target_cut_off_before_commit_leaves_the_container_where_it_was,
        faults::a_target_that_loses_its_power_before_commit_leaves_the_container_where_it_was,
        fence::past_a_clouds_deadline_and_a_margin_the_target_runs_without_its_source,
        fence::the_target_runs_when_the_cloud_says_that_the_source_is_gone,
        fence::a_person_ends_a_migration_by_hand_whose_source_is_gone_for_good,
        inventory::hosts_that_find_each_other_by_etcd_move_containers_also_when_it_is_gone,
        mass::three_of_five_hosts_are_taken_at_once_and_nothing_is_over_committed,
        matrix::faults_of_every_kind_in_the_dangerous_windows_neither_lose_nor_double_anything,
        matrix::the_checker_finds_two_that_run_and_what_is_left,
        matrix::ten_moves_on_one_connection_leave_nothing_behind,
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn trial(name: &str, scenario: fn(&Scene)) -> Trial {
    Trial::test(name, move || {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let scene = shared.get_or_insert_with(|| Scene::up("e2e-scenarios"));
        scene.clear();
        catch_unwind(AssertUnwindSafe(|| scenario(scene))).unwrap_or_else(|panic| {
            scene.tell_logs();
            resume_unwind(panic)
        });
        Ok(())
    })
}
