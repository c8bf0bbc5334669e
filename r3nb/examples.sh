# r3nb_study list
r3nb_study list

# r3nb_study run
r3nb_study run runs/profiles/smoke.yaml --dry_run
r3nb_study run runs/profiles/smoke.yaml

# r3nb_study status
r3nb_study status runs/profiles/smoke.yaml

# r3nb_study clean
r3nb_study clean runs/profiles/smoke.yaml --only train

# r3nb_mini world
r3nb_mini world --out_dir runs/demo/raw --n_train 30 --n_val 9

# r3nb_mini pretrain
r3nb_mini pretrain --out_dir runs/demo/tiny --pages 60 --max_steps 2,2,2 --eye_steps 2 --clip_steps 2

# r3nb_models
r3nb_models --out_dir models

# r3nb_download
r3nb_download chartqa --splits val --limit 100 --out_dir data/raw/chartqa

# r3nb_ocr
r3nb_mini world --out_dir runs/demo/raw --n_train 30 --n_val 9
r3nb_ocr --image_dir runs/demo/raw/screenqa/images --out runs/demo/screenqa.jsonl

# r3nb_unify
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_unify --dataset screenqa --raw_dir runs/demo/world/raw/screenqa --ocr_cache runs/demo/world/ocr.jsonl --image_prefix screenqa --out_dir runs/demo/unified

# r3nb_merge
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_merge runs/demo/world/unified/*_unified_train.jsonl --image_root runs/demo/world/raw --out runs/demo/train.jsonl

# r3nb_index
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_index --jsonl runs/demo/world/train.jsonl --image_root runs/demo/world/raw --image_encoder r3nb/assets/tiny-clip --out_dir runs/demo/index

# r3nb_audit
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_audit --jsonl runs/demo/world/val.jsonl --image_root runs/demo/world/raw --index_dir runs/demo/world/index --out_dir runs/demo/audit

# r3nb_check
r3nb_check --model_name r3nb/assets/tiny-qwen3vl

# r3nb_plan
r3nb_plan --model_name r3nb/assets/tiny-qwen3vl --gpus 8xV100-32GB

# r3nb_train
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_train --model_name r3nb/assets/tiny-qwen3vl --train_jsonl runs/demo/world/train.jsonl --image_root runs/demo/world/raw --index_dir runs/demo/world/index --image_dim 64 --bottleneck 128 --max_steps 4 --batch_size 2 --output_dir runs/demo/training

# r3nb_evidence
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_evidence --model_name r3nb/assets/tiny-qwen3vl --train_jsonl runs/demo/world/train.jsonl --image_root runs/demo/world/raw --index_dir runs/demo/world/index --evidence_cache runs/demo/evidence --levels 0,0.4

# r3nb_export
r3nb_export --checkpoint_dir r3nb/shipped/tiny-r3 --model_name r3nb/assets/tiny-qwen3vl --full --out runs/demo/full

# r3nb_eval
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_eval --model_name r3nb/assets/tiny-qwen3vl --checkpoint_dir r3nb/shipped/tiny-r3 --val_jsonl runs/demo/world/val.jsonl --image_root runs/demo/world/raw --index_dir runs/demo/world/index --eval_mode base,rag,r3 --corruption_levels 0,0.6 --out_dir runs/demo/eval

# r3nb_compare
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_eval --model_name r3nb/assets/tiny-qwen3vl --checkpoint_dir r3nb/shipped/tiny-r3 --val_jsonl runs/demo/world/val.jsonl --image_root runs/demo/world/raw --index_dir runs/demo/world/index --eval_mode rag,r3 --corruption_levels 0,0.6 --out_dir runs/demo/pair
r3nb_compare runs/demo/pair --mode_a r3 --mode_b rag

# r3nb_submission
python -m r3nb.explorer --out_dir runs/demo/world
sed 's/"mini-/"/' runs/demo/world/unified/infovqa_unified_val.jsonl > runs/demo/infovqa.jsonl  # the server knows questions by number
r3nb_eval --model_name r3nb/assets/tiny-qwen3vl --checkpoint_dir r3nb/shipped/tiny-r3 --val_jsonl runs/demo/infovqa.jsonl --image_root runs/demo/world/raw --index_dir runs/demo/world/index --eval_mode r3 --clean_only --out_dir runs/demo/infovqa
r3nb_submission runs/demo/infovqa/predictions.jsonl --out runs/demo/submission.json

# r3nb_corrupt
r3nb_mini world --out_dir runs/demo/raw --n_train 30 --n_val 9
r3nb_corrupt runs/demo/raw/screenqa/images --levels 0,0.4,0.8 --out runs/demo/gallery

# r3nb_corrupt freeze
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_corrupt freeze --jsonl runs/demo/world/val.jsonl --image_root runs/demo/world/raw --levels 0,0.4 --out runs/demo/frozen

# r3nb_corrupt verify
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_corrupt freeze --jsonl runs/demo/world/val.jsonl --image_root runs/demo/world/raw --levels 0,0.4 --out runs/demo/frozen
r3nb_corrupt verify runs/demo/frozen

# r3nb_corrupt fidelity
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_corrupt freeze --jsonl runs/demo/world/val.jsonl --image_root runs/demo/world/raw --levels 0.4 --out runs/demo/simulated
r3nb_corrupt freeze --jsonl runs/demo/world/val.jsonl --image_root runs/demo/world/raw --levels 0.4 --text_damage reocr --out runs/demo/reocr
r3nb_corrupt fidelity runs/demo/simulated runs/demo/reocr

# r3nb_tasks
python -m r3nb.explorer --out_dir runs/demo/world
r3nb_tasks --jsonl runs/demo/world/val.jsonl --image_root runs/demo/world/raw --out runs/demo/tasks

# r3nb.explorer
python -m r3nb.explorer --out_dir runs/demo/world

# r3nb.paper
python -m r3nb.paper --results nbs/results/mini-full/results.json --out_dir runs/demo/figures
