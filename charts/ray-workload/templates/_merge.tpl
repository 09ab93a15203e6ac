{{/* Lay one value over another: maps by key, lists of named things by their name or mountPath, other lists end to end.
     An empty string, list or map changes nothing. Takes (list BASE OVER), returns {"v": RESULT} as JSON. */}}
{{- define "ray-workload.over" -}}
{{- $base := index . 0 -}}
{{- $over := index . 1 -}}
{{- $result := $over -}}
{{- if not (or $over (kindIs "bool" $over) (kindIs "float64" $over) (kindIs "int64" $over) (kindIs "int" $over)) -}}
  {{- $result = $base -}}
{{- else if and (kindIs "map" $base) (kindIs "map" $over) -}}
  {{- $result = deepCopy $base -}}
  {{- range $key, $value := $over -}}
    {{- if hasKey $base $key -}}
      {{- $_ := set $result $key (get (include "ray-workload.over" (list (get $base $key) $value) | fromJson) "v") -}}
    {{- else if not (has $value (list "" nil)) -}}
      {{- $_ := set $result $key $value -}}
    {{- end -}}
  {{- end -}}
{{- else if and (kindIs "slice" $base) (kindIs "slice" $over) -}}
  {{- $replaced := dict -}}
  {{- range $over }}{{ $_ := set $replaced (include "ray-workload.identity" .) . }}{{ end -}}
  {{- $result = list -}}
  {{- range $base -}}
    {{- $identity := include "ray-workload.identity" . -}}
    {{- $result = append $result (get $replaced $identity | default .) -}}
    {{- $_ := unset $replaced $identity -}}
  {{- end -}}
  {{- range $over -}}
    {{- if hasKey $replaced (include "ray-workload.identity" .) }}{{ $result = append $result . }}{{ end -}}
  {{- end -}}
{{- end -}}
{{ dict "v" $result | toJson }}
{{- end -}}

{{- define "ray-workload.identity" -}}
{{- if kindIs "map" . }}{{ .mountPath | default .name | default (toJson .) }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}
