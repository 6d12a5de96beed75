//! What a cloud says of an instance: hosts that are instances of an imitation of EC2, on the client machine.

use std::path::PathBuf;

use serde_json::Value;
use spothop_tests::layout::CLIENT_ADDRESS;
use spothop_tests::moto::{Moto, REGION};

use crate::configured::Configured;
use crate::scene::{DROP_INS, HOSTS, Scene};

/// Where a host's daemon is told where AWS is.
pub(crate) const AWS_UNIT: &str = "/run/systemd/system/spothop.service.d/aws.conf";

/// EC2, on the client machine, and every host an instance of it whose daemon asks there.
struct Cloud<'a> {
    scene: &'a Scene,
    moto: Moto,
    /// The instances' ids, in the order of the hosts.
    ids: [String; 2],
}

/// Starts moto on the client machine.
pub(crate) fn moto_beside(scene: &Scene) -> Moto {
    let network = PathBuf::from(format!("/proc/{}/ns/net", scene.state().client.pid));
    Moto::start(&CLIENT_ADDRESS.to_string(), Some(&network), &|line| eprintln!("{line}")).expect("moto")
}

/// Has a host's daemon ask an imitation of AWS there, with any keys, from its next start on. `variable`: `AWS_ENDPOINT_URL`, or that of one service.
pub(crate) fn ask_there(scene: &Scene, host: &str, variable: &str, endpoint: &str) {
    let variables =
        format!("{variable}={endpoint} AWS_REGION={REGION} AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret");
    let unit = format!("mkdir -p {DROP_INS}; printf '[Service]\\nEnvironment={variables}\\n' > {AWS_UNIT}");
    scene.sh(host, &unit);
}

/// Starts EC2 on the client machine, and makes every host an instance of it; returns their ids in the order of the hosts.
pub(crate) fn cloud_over(scene: &Scene) -> (Moto, [String; 2]) {
    let moto = moto_beside(scene);
    let ids = HOSTS.map(|host| {
        let id = moto.run_instance().expect("an instance");
        scene.identify(host, &id).expect("a metadata service");
        ask_there(scene, host, "AWS_ENDPOINT_URL", moto.endpoint());
        scene.restart_daemon(host);
        scene.eventually(host, "journalctl -u spothop -b | grep -q \"this host is aws \"");
        id
    });
    (moto, ids)
}

impl<'a> Cloud<'a> {
    fn over(scene: &'a Scene) -> Self {
        let (moto, ids) = cloud_over(scene);
        Self { scene, moto, ids }
    }

    /// `doctor`'s line about the cloud: verdict and finding.
    fn examined(&self, host: &str) -> (String, String) {
        let answer = self.scene.spothop(host, &["doctor"]);
        let checks = answer.json["checks"].as_array().unwrap_or_else(|| panic!("{answer:?}"));
        let check = checks.iter().find(|check| check["subject"] == "provider").unwrap_or_else(|| panic!("{answer:?}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&check["verdict"]), text(&check["finding"]))
    }
}

impl Drop for Cloud<'_> {
    fn drop(&mut self) {
        for (index, host) in HOSTS.iter().enumerate() {
            // A panic here, while another one is on its way, would hide the reason of both.
            let script = format!("rm -f {AWS_UNIT}; systemctl daemon-reload; systemctl restart spothop");
            let own = spothop_tests::testbed::instance_id(index as u8);
            let put_back = self.scene.identify(host, &own);
            if let Err(error) = put_back.and_then(|()| self.scene.output(host, ["sh", "-ec", &script]).map(drop)) {
                eprintln!("{host} is not as it was: {error}");
            }
        }
    }
}

pub(crate) fn a_host_tells_what_kind_of_machine_it_is_and_what_it_costs(scene: &Scene) {
    let _cloud = Cloud::over(scene);
    let _configured = Configured::adding(scene, &HOSTS, "[provider.aws]\nspot_price = true");
    scene.eventually("a", "spothop status --json | grep -q price_micros");
    let own = scene.spothop("a", &["status"]).json["machine"].clone();
    // What the metadata service says; and the price is EC2's.
    assert_eq!((&own["machine_type"], &own["zone"]), (&"m7i.large".into(), &"eu-central-1b".into()), "{own:#}");
    assert_eq!((&own["spot"], &own["pool"]), (&true.into(), &"m7i.large/eu-central-1b".into()), "{own:#}");
    assert!(own["price_micros"].as_u64().is_some_and(|price| price > 0), "{own:#}");

    // An operator's words stand before both, and others hear them; the planner counts them.
    let words = r#"price = "0.5"\nspot = false\nmachine_type = "ours""#;
    scene.sh("b", &format!("sed -i '/^\\[host\\]/a {words}' /etc/spothop/config.toml"));
    scene.restart_daemon("b");
    scene.eventually("b", "spothop status --json | grep -q eu-central-1b");
    let hosts = scene.spothop("a", &["hosts"]).json;
    let facts = &hosts[0]["state"]["reachable"];
    assert_eq!((&facts["price_micros"], &facts["spot"]), (&500_000.into(), &false.into()), "{hosts:#}");
    assert_eq!((&facts["machine_type"], &facts["pool"]), (&"ours".into(), &Value::Null), "{hosts:#}");
    scene.run("a", "s1", "python", &["sleep", "infinity"]);
    let plan = scene.spothop("a", &["plan", "s1"]).json;
    let cost = &plan["moves"][0]["candidates"][0]["cost"];
    assert_eq!((&cost["price_us"], &cost["interruption_us"]), (&5_000_000.into(), &0.into()), "{plan:#}");
    scene.sh("a", "docker rm -f s1");
}

pub(crate) fn doctor_tells_what_the_cloud_says_of_the_host(scene: &Scene) {
    let cloud = Cloud::over(scene);
    let (a, b) = (&cloud.ids[0], &cloud.ids[1]);
    assert_eq!(cloud.examined("a"), ("ok".to_owned(), format!("says of this host (aws {a} in {REGION}): running")));
    cloud.moto.terminate(a).expect("the end of an instance");
    let (verdict, finding) = cloud.examined("a");
    assert_eq!(verdict, "warning");
    assert!(finding.contains("gone for good") && finding.contains("terminated"), "{finding}");
    cloud.moto.stop(b).expect("a pause of an instance");
    let (verdict, finding) = cloud.examined("b");
    assert_eq!(verdict, "warning");
    assert!(finding.contains("may be started again"), "{finding}");
}
