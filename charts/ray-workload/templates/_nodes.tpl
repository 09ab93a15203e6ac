{{/* The values of the head and of each worker group, as the upstream chart takes them, computed from our own. */}}

{{/* The enabled worker groups: a map from the name to `workers` with the group's own values over it. As JSON. */}}
{{- define "ray-workload.groups" -}}
{{- $groups := dict -}}
{{- range $name, $own := .Values.workerGroups -}}
  {{- if and (kindIs "map" $own) (ne "false" (toString $own.enabled)) -}}
    {{- $group := include "ray-workload.over" (list $.Values.workers $own) | fromJson -}}
    {{- $_ := set $groups $name (omit $group "enabled") -}}
  {{- end -}}
{{- end -}}
{{ toJson $groups }}
{{- end -}}

{{/* A pod of the head or of a group. Takes (dict "context" $ "name" "head"|GROUP "values" VALUES "over" LIST), where LIST
     has the user's values for the upstream chart, to be laid over what is computed. As JSON. */}}
{{- define "ray-workload.node" -}}
{{- $root := .context -}}
{{- $own := .values -}}
{{- $isHead := eq .name "head" -}}
{{- $mounts := include "ray-workload.mounts" . | fromJson -}}
{{- $node := dict -}}
{{- $_ := set $node "image" (include "ray-workload.over" (list (include "ray-workload.image" $root | fromJson) (include "ray-workload.filled" $own.image | fromJson)) | fromJson) -}}
{{- $_ := set $node "containerEnv" (include "ray-workload.env" . | fromJsonArray) -}}
{{- $_ := set $node "serviceAccountName" (include "ray-workload.account" (list $root (ternary "head" "worker" $isHead))) -}}
{{- $_ := set $node "podSecurityContext" (include "ray-workload.podSecurityContext" . | fromYaml) -}}
{{- $_ := set $node "securityContext" (include "ray-workload.securityContext" . | fromYaml) -}}
{{- $_ := set $node "volumes" $mounts.volumes -}}
{{- $_ := set $node "volumeMounts" $mounts.volumeMounts -}}
{{- $_ := set $node "annotations" (include "ray-workload.over" (list $mounts.annotations $own.annotations) | fromJson) -}}
{{- $_ := set $node "labels" $own.labels -}}
{{- $limits := dict -}}
{{- range $name, $amount := dict "cpu" $own.cpu "memory" $own.memory "ephemeral-storage" $own.ephemeralStorage "nvidia.com/gpu" $own.gpus -}}
  {{- if $amount }}{{ $_ := set $limits $name $amount }}{{ end -}}
{{- end -}}
{{- $_ := set $node "resources" (dict "limits" $limits "requests" (include "ray-workload.over" (list $limits $own.requests) | fromJson)) -}}
{{- $start := dict -}}
{{- if and $isHead (not $own.runsTasks) }}{{ $_ := set $start "num-cpus" "0" }}{{ end -}}
{{- $selector := dict -}}
{{- $tolerations := list -}}
{{- with $own.accelerator -}}
  {{- /* The autoscaler reads this resource here while the group has no pods. `submit --accelerator` requests it. */ -}}
  {{- $_ := set $start "resources" (dict (printf "accelerator_type:%s" .) 1 | toJson | toJson) -}}
  {{- $selector = get $root.Values.acceleratorNodes . | default dict -}}
{{- end -}}
{{- if $own.gpus }}{{ $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}{{ end -}}
{{- $affinity := dict -}}
{{- if $own.spot -}}
  {{- $expressions := list -}}
  {{- range $key, $value := $root.Values.spotNodes -}}
    {{- $expressions = append $expressions (dict "key" $key "operator" "In" "values" (list $value)) -}}
    {{- $tolerations = append $tolerations (dict "key" $key "operator" "Equal" "value" $value) -}}
  {{- end -}}
  {{- $preferred := dict "weight" 100 "preference" (dict "matchExpressions" $expressions) -}}
  {{- $affinity = dict "nodeAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list $preferred)) -}}
{{- end -}}
{{- $placed := dict "rayStartParams" $start "nodeSelector" $selector "tolerations" $tolerations "affinity" $affinity -}}
{{- $placed = include "ray-workload.over" (list $placed (pick $own "rayStartParams" "nodeSelector" "tolerations" "affinity")) | fromJson -}}
{{- $layers := list (merge $node $placed) (dict "containerEnv" (index $root.Values "ray-cluster").common.containerEnv) -}}
{{- range .over }}{{ $layers = append $layers (include "ray-workload.filled" . | fromJson) }}{{ end -}}
{{- $node = include "ray-workload.over" $layers | fromJson -}}
{{- $_ := set $node "rayStartParams" (include "ray-workload.over" (list $node.rayStartParams $node.initArgs) | fromJson) -}}
{{- $_ := set $node "resources" (include "ray-workload.resources" $node.resources | fromJson) -}}
{{- /* The upstream chart renders the name as it is, and cannot render the other field. */ -}}
{{- $_ := set $node "serviceAccountName" (printf "%s\n        automountServiceAccountToken: false" $node.serviceAccountName) -}}
{{- $_ := set $node "pullPolicy" $node.image.pullPolicy -}}
{{- $_ := set $node.image "pullPolicy" (include "ray-workload.pullPolicyAndProbe" (list (include "ray-workload.rayVersion" $root) $node)) -}}
{{ omit $node "initArgs" | toJson }}
{{- end -}}

{{/* More lines for the upstream chart to render: empty fields that the operator writes. If helm writes them first, the
     operator does not become an owner of the worker groups, with which Helm 4 refuses each upgrade. CRDs before KubeRay 1.4
     require `rayStartParams`. Takes a node. */}}
{{- define "ray-workload.noStartParams" -}}
{{ if not .rayStartParams }}{{ "\n    rayStartParams: {}" }}{{ end }}
{{- end -}}

{{/* The image of all nodes: `image` with ray-cluster.image over it. As JSON. */}}
{{- define "ray-workload.image" -}}
{{- include "ray-workload.over" (list (omit .Values.image "pullSecrets") (include "ray-workload.filled" (index .Values "ray-cluster").image | fromJson)) -}}
{{- end -}}

{{/* The environment variables of a node. Takes what ray-workload.node takes. As a JSON list. */}}
{{- define "ray-workload.env" -}}
{{- $root := .context -}}
{{- $env := include "ray-workload.authEnv" $root | fromJsonArray -}}
{{- if eq .name "head" -}}
  {{- /* The time between SIGTERM and SIGKILL when a job is stopped. Ray's default of 3 s is too short for a checkpoint. */ -}}
  {{- $env = append $env (dict "name" "RAY_JOB_STOP_WAIT_TIME_S" "value" "30") -}}
  {{- /* The server of Ray Client forks a process for each client. gRPC's handlers of a fork sometimes crash it. */ -}}
  {{- if $root.Values.api.rayClient }}{{ $env = append $env (dict "name" "GRPC_ENABLE_FORK_SUPPORT" "value" "0") }}{{ end -}}
{{- end -}}
{{- with $root.Values.outputs }}{{ $env = append $env (dict "name" "RAY_WORKLOAD_OUTPUTS" "value" .) }}{{ end -}}
{{- $given := list -}}
{{- range $name, $value := include "ray-workload.over" (list ($root.Values.env | default dict) .values.env) | fromJson -}}
  {{- if kindIs "map" $value -}}
    {{- $given = append $given (dict "name" $name "valueFrom" (dict "secretKeyRef" (dict "name" $value.secret "key" $value.key))) -}}
  {{- else -}}
    {{- $given = append $given (dict "name" $name "value" (include "ray-workload.text" $value)) -}}
  {{- end -}}
{{- end -}}
{{- include "ray-workload.over" (list $env $given) -}}
{{- end -}}

{{/* The variables of token authentication. As a JSON list. */}}
{{- define "ray-workload.authEnv" -}}
{{- if .Values.auth.enabled -}}
  {{- $key := dict "name" (include "ray-workload.authSecret" .) "key" "auth_token" -}}
  {{ list (dict "name" "RAY_AUTH_MODE" "value" "token") (dict "name" "RAY_AUTH_TOKEN" "valueFrom" (dict "secretKeyRef" $key)) | toJson }}
{{- else -}}
  {{ list (dict "name" "RAY_AUTH_MODE" "value" "disabled") | toJson }}
{{- end -}}
{{- end -}}

{{/* The volumes and mounts of a node, and the annotations that they need. Takes what ray-workload.node takes. */}}
{{- define "ray-workload.mounts" -}}
{{- $root := .context -}}
{{- $node := .name -}}
{{- $volumes := list (dict "name" "log-volume" "emptyDir" dict) -}}
{{- $mounts := list (dict "name" "log-volume" "mountPath" "/tmp/ray") -}}
{{- $annotations := dict -}}
{{- range $name, $secret := $root.Values.secrets -}}
  {{- $volume := ternary $name (printf "secret-%s" (sha256sum $name | trunc 16)) (regexMatch "^[^.]{1,63}$" $name) -}}
  {{- $volumes = append $volumes (dict "name" $volume "secret" (dict "secretName" ($secret.existingSecret | default $name) "defaultMode" 0440)) -}}
  {{- with $secret.mountPath }}{{ $mounts = append $mounts (dict "name" $volume "mountPath" . "readOnly" true) }}{{ end -}}
{{- end -}}
{{- range $name, $volume := $root.Values.volumes -}}
  {{- if has $node ($volume.groups | default (list $node)) -}}
    {{- $volumes = append $volumes (merge (dict "name" $name) (omit $volume "mountPath" "subPath" "readOnly" "groups")) -}}
    {{- $mounts = append $mounts (merge (dict "name" $name) (pick $volume "mountPath" "subPath" "readOnly")) -}}
    {{- if eq "gcsfuse.csi.storage.gke.io" (dig "csi" "driver" "" $volume) }}{{ $_ := set $annotations "gke-gcsfuse/volumes" "true" }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- if and (eq $node "head") $root.Values.autoscaling.enabled -}}
  {{- $volumes = append $volumes (include "ray-workload.apiToken" . | fromYaml) -}}
{{- end -}}
{{ dict "volumes" $volumes "volumeMounts" $mounts "annotations" $annotations | toJson }}
{{- end -}}

{{/* The volume with the Kubernetes API token, which only the autoscaler's container mounts. */}}
{{- define "ray-workload.apiToken" -}}
name: api-token
projected:
  sources:
    - serviceAccountToken:
        path: token
    - configMap:
        name: kube-root-ca.crt
        items:
          - {key: ca.crt, path: ca.crt}
    - downwardAPI:
        items:
          - path: namespace
            fieldRef: {fieldPath: metadata.namespace}
{{- end -}}

{{/* Pod Security `restricted`. */}}
{{- define "ray-workload.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 100
fsGroup: 100
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "ray-workload.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The head's ports by name, from its `ray start` parameters: the operator derives the Service and its probes from
     them. `as-metrics` and `dash-metrics` are the metrics of autoscaler and dashboard. As a JSON list. */}}
{{- define "ray-workload.headPorts" -}}
{{- $ports := list -}}
{{- range list (list "gcs-server" "port" 6379) (list "dashboard" "dashboard-port" 8265) (list "client" "ray-client-server-port" 10001) (list "serve" "" 8000) (list "metrics" "metrics-export-port" 8080) (list "as-metrics" "" 44217) (list "dash-metrics" "" 44227) -}}
  {{- $number := include "ray-workload.startPort" (list $ (index . 1) (index . 2)) | int -}}
  {{- $ports = append $ports (dict "name" (index . 0) "containerPort" $number) -}}
{{- end -}}
{{ toJson $ports }}
{{- end -}}

{{/* A port number from the parameters of `ray start`, or the default (see ray_constants.py). Takes
     (list NODE PARAMETER DEFAULT). */}}
{{- define "ray-workload.startPort" -}}
{{ get ((index . 0).rayStartParams | default dict) (index . 1) | default (index . 2) | int }}
{{- end -}}

{{/* The number of the head's port with this name. Takes (list $ NAME). */}}
{{- define "ray-workload.headPort" -}}
{{- $name := index . 1 -}}
{{- range (index (index . 0).Values "ray-cluster").head.ports }}{{ if eq .name $name }}{{ int .containerPort }}{{ end }}{{ end -}}
{{- end -}}

{{- define "ray-workload.agentPort" -}}
{{ include "ray-workload.startPort" (list . "dashboard-agent-listen-port" 52365) }}
{{- end -}}

{{/* A node's pullPolicy, followed by its readiness probe: the upstream chart renders the former as it is, and cannot render
     the latter. The operator's own probe asks the same, but for the first time after 10 s. Takes (list VERSION NODE). */}}
{{- define "ray-workload.pullPolicyAndProbe" -}}
{{- $node := index . 1 -}}
{{ $node.image.pullPolicy }}
{{- if semverCompare ">=2.53.0-0" (regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+" (index . 0) | default "0.0.0") }}
          readinessProbe:
            httpGet: {path: /api/healthz, port: {{ include "ray-workload.agentPort" $node }}}
            initialDelaySeconds: 1
            periodSeconds: 2
            timeoutSeconds: 5
            failureThreshold: 25
{{- end -}}
{{- end -}}
