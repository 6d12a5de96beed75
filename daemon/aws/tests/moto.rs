//! EC2 and STS as moto imitates them: a server of somebody else's, with states that change as instances are stopped and
//! terminated.

use spothop_aws::{Access, Ec2, InstanceState};
use spothop_tests::moto::{ACCOUNT, Moto, REGION};

fn moto() -> Moto {
    Moto::start("127.0.0.1", None, &|line| eprintln!("{line}")).expect("moto")
}

async fn ec2(moto: &Moto) -> Ec2 {
    let keys = ("key".to_owned(), "secret".to_owned());
    Ec2::new(Access::Imitation { endpoint: moto.endpoint().to_owned(), keys }).await
}

#[tokio::test]
async fn an_instance_is_seen_running_stopped_and_terminated() {
    let moto = moto();
    let (ec2, id) = (ec2(&moto).await, moto.run_instance().unwrap());
    let other = moto.run_instance().unwrap();
    assert_eq!(ec2.instance_state(REGION, &id).await.unwrap(), Some(InstanceState::Running));
    moto.stop(&id).unwrap();
    assert_eq!(ec2.instance_state(REGION, &id).await.unwrap(), Some(InstanceState::Stopped));
    moto.terminate(&id).unwrap();
    assert_eq!(ec2.instance_state(REGION, &id).await.unwrap(), Some(InstanceState::Terminated));
    assert_eq!(ec2.instance_state(REGION, &other).await.unwrap(), Some(InstanceState::Running));
}

#[tokio::test]
async fn an_id_is_known_only_in_its_region() {
    let moto = moto();
    let (ec2, id) = (ec2(&moto).await, moto.run_instance().unwrap());
    assert_eq!(ec2.instance_state(REGION, "i-00000000000000000").await.unwrap(), None);
    assert_eq!(ec2.instance_state("us-east-1", &id).await.unwrap(), None);
    assert_eq!(ec2.account(REGION).await.unwrap(), ACCOUNT);
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_error_and_no_answer() {
    let moto = moto();
    let (ec2, id) = (ec2(&moto).await, moto.run_instance().unwrap());
    assert!(ec2.instance_state(REGION, &id).await.is_ok());
    drop(moto);
    let error = ec2.instance_state(REGION, &id).await.expect_err("nobody is there");
    assert!(matches!(error, spothop_aws::Error::NoAnswer { .. }), "{error:?}");
}
