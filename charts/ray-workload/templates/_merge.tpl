{{/* Lay values over each other, the last on top: maps by key, lists of named things by their name or mountPath, other
     lists end to end. An empty list or map changes nothing. Takes a list of maps or of lists; returns JSON. */}}
{{- define "ray-workload.over" -}}
{{- $result := first . -}}
{{- range $over := rest . -}}
  {{- if kindIs "map" $over -}}
    {{- $result = deepCopy $result -}}
    {{- range $key, $value := $over -}}
      {{- $under := get $result $key -}}
      {{- if and (kindIs "map" $under) (kindIs "map" $value) -}}
        {{- $_ := set $result $key (include "ray-workload.over" (list $under $value) | fromJson) -}}
      {{- else if and (kindIs "slice" $under) (kindIs "slice" $value) -}}
        {{- $_ := set $result $key (include "ray-workload.over" (list $under $value) | fromJsonArray) -}}
      {{- else if not (or (kindIs "invalid" $value) (and (hasKey $result $key) (has $value (list list dict)))) -}}
        {{- $_ := set $result $key $value -}}
      {{- end -}}
    {{- end -}}
  {{- else if kindIs "slice" $over -}}
    {{- $replaced := dict -}}
    {{- range $over }}{{ $_ := set $replaced (include "ray-workload.identity" .) . }}{{ end -}}
    {{- $base := $result -}}
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
{{- end -}}
{{ toJson $result }}
{{- end -}}

{{- define "ray-workload.identity" -}}
{{- if kindIs "map" . }}{{ .mountPath | default .name | default (toJson .) }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{/* A value as text. `toString` turns a million into 1e+06. */}}
{{- define "ray-workload.text" -}}
{{ ternary . (toJson .) (kindIs "string" .) }}
{{- end -}}

{{/* Values for the upstream chart, without the empty strings that stand for no value. As JSON. */}}
{{- define "ray-workload.filled" -}}
{{- $filled := dict -}}
{{- range $key, $value := . -}}
  {{- if and (kindIs "map" $value) (has $key (list "image" "resources" "requests" "limits")) -}}
    {{- $value = include "ray-workload.filled" $value | fromJson -}}
  {{- end -}}
  {{- if not (has $value (list "" nil)) }}{{ $_ := set $filled $key $value }}{{ end -}}
{{- end -}}
{{ toJson $filled }}
{{- end -}}

{{/* Resources whose amounts are text, which the CRD requires for fractions. An empty amount is left out. As JSON. */}}
{{- define "ray-workload.resources" -}}
{{- $resources := deepCopy . -}}
{{- range $part := list "requests" "limits" -}}
  {{- $amounts := dict -}}
  {{- range $name, $amount := get $resources $part | default dict -}}
    {{- with include "ray-workload.text" $amount }}{{ $_ := set $amounts $name . }}{{ end -}}
  {{- end -}}
  {{- $_ := set $resources $part $amounts -}}
{{- end -}}
{{ toJson $resources }}
{{- end -}}
