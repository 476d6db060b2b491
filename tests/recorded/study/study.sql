BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL,
	study_name VARCHAR(512) NOT NULL,
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'real');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL,
	direction VARCHAR(8) NOT NULL,
	study_id INTEGER NOT NULL,
	objective INTEGER NOT NULL,
	PRIMARY KEY (study_direction_id),
	UNIQUE (study_id, objective),
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',1,1);
INSERT INTO "study_directions" VALUES(3,'MINIMIZE',1,2);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL,
	study_id INTEGER,
	"key" VARCHAR(512),
	value_json TEXT,
	PRIMARY KEY (study_system_attribute_id),
	UNIQUE (study_id, "key"),
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["accuracy", "latency", "flops"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL,
	study_id INTEGER,
	"key" VARCHAR(512),
	value_json TEXT,
	PRIMARY KEY (study_user_attribute_id),
	UNIQUE (study_id, "key"),
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'searched','true');
INSERT INTO "study_user_attributes" VALUES(2,1,'last_rung:1','{"resolution": 16, "epochs": 2, "seconds": 1.802, "accuracy": 0.2200557103064067, "preprocessing": {"input": [1, 16, 16], "orientation": "exif", "color": "L", "background": [255, 255, 255], "draft": null, "range": null, "resize": {"shorter_side": 16}, "interpolation": "bilinear", "crop": [16, 16], "mean": [0.305985], "std": [0.319167]}}');
INSERT INTO "study_user_attributes" VALUES(3,1,'deployed:1','{"resolution": 16, "epochs": 2, "seconds": 1.802, "accuracy": 0.2200557103064067, "accuracy_int8": null}');
INSERT INTO "study_user_attributes" VALUES(4,1,'last_rung:0','{"resolution": 16, "epochs": 2, "seconds": 1.488, "accuracy": 0.22562674094707522, "preprocessing": {"input": [1, 16, 16], "orientation": "exif", "color": "L", "background": [255, 255, 255], "draft": null, "range": null, "resize": {"shorter_side": 16}, "interpolation": "bilinear", "crop": [16, 16], "mean": [0.305985], "std": [0.319167]}}');
INSERT INTO "study_user_attributes" VALUES(5,1,'deployed:0','{"resolution": 16, "epochs": 2, "seconds": 1.488, "accuracy": 0.22562674094707522, "accuracy_int8": null}');
INSERT INTO "study_user_attributes" VALUES(6,1,'latency_again','{"0": {"runtime": "onnxruntime", "device": "cpu", "threads": 1, "batch_size": 1, "input": [1, 16, 16], "median_ms": 0.014068006881893573, "low_ms": 0.013176122624483323, "high_ms": 0.015020262278165126, "rounds": 76, "contended": true, "samples_ms": [0.014061000001674984, 0.014041000213182997, 0.014041000213182997], "reference_ms": [2.6143574999419608, 2.532165499941952, 2.4557319999434224], "reference_usual_ms": 2.422767374999968, "machine": {"processor": "AMD EPYC", "cores": 2, "system": "Linux x86_64", "memory_gib": 24}, "versions": {"onnxruntime": "1.31.1", "torch": "2.13.0+cpu", "nasspace": "0.1.0"}, "measured_at": "2026-11-27T19:25:46+00:00"}}');
INSERT INTO "study_user_attributes" VALUES(7,1,'finished','true');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL,
	trial_id INTEGER NOT NULL,
	heartbeat DATETIME NOT NULL,
	PRIMARY KEY (trial_heartbeat_id),
	UNIQUE (trial_id),
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL,
	trial_id INTEGER NOT NULL,
	step INTEGER NOT NULL,
	intermediate_value FLOAT,
	intermediate_value_type VARCHAR(7) NOT NULL,
	PRIMARY KEY (trial_intermediate_value_id),
	UNIQUE (trial_id, step),
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL,
	trial_id INTEGER,
	param_name VARCHAR(512),
	param_value FLOAT,
	distribution_json TEXT,
	PRIMARY KEY (param_id),
	UNIQUE (trial_id, param_name),
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'stages.0.out',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16]}}');
INSERT INTO "trial_params" VALUES(2,1,'stages.0.inverted_residual.expansion',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [2, 3]}}');
INSERT INTO "trial_params" VALUES(3,2,'stages.0.out',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16]}}');
INSERT INTO "trial_params" VALUES(4,2,'stages.0.inverted_residual.expansion',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [2, 3]}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL,
	trial_id INTEGER,
	"key" VARCHAR(512),
	value_json TEXT,
	PRIMARY KEY (trial_system_attribute_id),
	UNIQUE (trial_id, "key"),
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'constraints:latency','-0.9997001956367177');
INSERT INTO "trial_system_attributes" VALUES(2,2,'constraints:latency','-0.9996280267877585');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL,
	trial_id INTEGER,
	"key" VARCHAR(512),
	value_json TEXT,
	PRIMARY KEY (trial_user_attribute_id),
	UNIQUE (trial_id, "key"),
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'digest','"2be9f137b56d"');
INSERT INTO "trial_user_attributes" VALUES(2,1,'architecture','"{\"nasspace\": 1, \"input\": [1, 16, 16], \"classes\": 10,\n \"layers\": [\n  {\"block\": \"conv\", \"out\": 8, \"kernel\": 3},\n  {\"block\": \"inverted_residual\", \"out\": 16, \"stride\": 2, \"expansion\": 2.0},\n  {\"block\": \"conv\", \"kernel\": 1},\n  {\"block\": \"global_pool\"},\n  {\"block\": \"dropout\"},\n  {\"block\": \"linear\", \"out\": 10}]}\n"');
INSERT INTO "trial_user_attributes" VALUES(3,1,'values','{"flops": 93344.0, "params": 1170.0, "memory_access": 18706.0, "latency": 0.014047961206930271, "accuracy": 0.10027855153203342}');
INSERT INTO "trial_user_attributes" VALUES(4,1,'reason','""');
INSERT INTO "trial_user_attributes" VALUES(5,1,'latency_interval','{"runtime": "onnxruntime", "device": "cpu", "threads": 1, "batch_size": 1, "input": [1, 16, 16], "median_ms": 0.014047961206930271, "low_ms": 0.013164932752202353, "high_ms": 0.01499021816411512, "rounds": 76, "contended": true, "samples_ms": [0.014181000096868956, 0.014011000075697666, 0.014070999895920977], "reference_ms": [2.4899314999995426, 2.4402529999543177, 2.452346499921987], "reference_usual_ms": 2.456325249971858, "machine": {"processor": "AMD EPYC", "cores": 2, "system": "Linux x86_64", "memory_gib": 24}, "versions": {"onnxruntime": "1.31.1", "torch": "2.13.0+cpu", "nasspace": "0.1.0"}, "measured_at": "2026-11-27T19:25:14+00:00"}');
INSERT INTO "trial_user_attributes" VALUES(6,1,'latency_host','"machine"');
INSERT INTO "trial_user_attributes" VALUES(7,1,'layers_ms','[0.00203, 0.00517, 0.00103, 0.0, 0, 0.00063]');
INSERT INTO "trial_user_attributes" VALUES(8,1,'training','{"seconds": 0.08872476600026857, "losses": [2.303450107574463]}');
INSERT INTO "trial_user_attributes" VALUES(9,1,'seconds','7.176');
INSERT INTO "trial_user_attributes" VALUES(10,2,'digest','"9fd0c8c16428"');
INSERT INTO "trial_user_attributes" VALUES(11,2,'architecture','"{\"nasspace\": 1, \"input\": [1, 16, 16], \"classes\": 10,\n \"layers\": [\n  {\"block\": \"conv\", \"out\": 8, \"kernel\": 3},\n  {\"block\": \"inverted_residual\", \"stride\": 2, \"expansion\": 3.0},\n  {\"block\": \"conv\", \"out\": 16, \"kernel\": 1},\n  {\"block\": \"global_pool\"},\n  {\"block\": \"dropout\"},\n  {\"block\": \"linear\", \"out\": 10}]}\n"');
INSERT INTO "trial_user_attributes" VALUES(12,2,'values','{"flops": 102048.0, "params": 1130.0, "memory_access": 22746.0, "latency": 0.01744600012898445, "accuracy": 0.116991643454039}');
INSERT INTO "trial_user_attributes" VALUES(13,2,'reason','""');
INSERT INTO "trial_user_attributes" VALUES(14,2,'latency_interval','{"runtime": "onnxruntime", "device": "cpu", "threads": 1, "batch_size": 1, "input": [1, 16, 16], "median_ms": 0.01744600012898445, "low_ms": 0.016364776305607714, "high_ms": 0.018598660612075067, "rounds": 79, "contended": true, "samples_ms": [0.017406000097253127, 0.01744600012898445, 0.017350999996779137], "reference_ms": [2.523857749999525, 2.5825857500278993, 2.547643000028188], "reference_usual_ms": 2.5825857500278993, "machine": {"processor": "AMD EPYC", "cores": 2, "system": "Linux x86_64", "memory_gib": 24}, "versions": {"onnxruntime": "1.31.1", "torch": "2.13.0+cpu", "nasspace": "0.1.0"}, "measured_at": "2026-11-27T19:25:21+00:00"}');
INSERT INTO "trial_user_attributes" VALUES(15,2,'latency_host','"machine"');
INSERT INTO "trial_user_attributes" VALUES(16,2,'layers_ms','[0.00208, 0.00785, 0.00125, 0.00012, 0, 0.00062]');
INSERT INTO "trial_user_attributes" VALUES(17,2,'training','{"seconds": 0.12089797799990265, "losses": [2.3076817989349365]}');
INSERT INTO "trial_user_attributes" VALUES(18,2,'seconds','5.945');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL,
	trial_id INTEGER NOT NULL,
	objective INTEGER NOT NULL,
	value FLOAT,
	value_type VARCHAR(7) NOT NULL,
	PRIMARY KEY (trial_value_id),
	UNIQUE (trial_id, objective),
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,1.00278551532033424753e-01,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,1.40479612069302709637e-02,'FINITE');
INSERT INTO "trial_values" VALUES(3,1,2,93344.0,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,0,0.116991643454039,'FINITE');
INSERT INTO "trial_values" VALUES(5,2,1,1.74460001289844512939e-02,'FINITE');
INSERT INTO "trial_values" VALUES(6,2,2,102048.0,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL,
	number INTEGER,
	study_id INTEGER,
	state VARCHAR(8) NOT NULL,
	datetime_start DATETIME,
	datetime_complete DATETIME,
	PRIMARY KEY (trial_id),
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-27 19:25:09.730126','2026-11-27 19:25:16.970083');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-27 19:25:17.010056','2026-11-27 19:25:23.007127');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL,
	schema_version INTEGER,
	library_version VARCHAR(256),
	PRIMARY KEY (version_info_id),
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
